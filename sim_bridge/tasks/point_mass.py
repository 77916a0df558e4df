"""A point that walks in the plane between locations of different worth: the smallest task whose return has several modes.

Everything about it is smooth in position and action along fixed noise, so that true samples of its return and of their
gradients can be had (`dst_core.world_models.point_mass`).
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from sim_bridge.errors import TaskError

CONTROL_PERIOD_S = 0.1
MOTION_NOISE_M = 0.05
"""Standard deviation of the motion noise per control period and axis."""
START_SPREAD_M = 0.1
"""Standard deviation of the first position per axis, about the middle."""
RADIUS_M = 1.0
"""Of the circle around the middle that the locations are on."""
WIDTH_M = 0.3
"""Standard deviation of the bump of reward at each location."""
LEAST_WORTH = 0.5
"""Reward per step at the worst location; 1 at the best, and evenly between."""
ACTION_COST = 0.01
"""Reward lost per step and (m/s)^2 of commanded velocity."""
PICTURE_SIZE, PICTURE_REACH_M, POINT_RADIUS_M = 256, 1.8, 0.06

Array = NDArray[np.float64]


def reward_locations(count: int) -> tuple[Array, Array]:
    """Positions (N, 2) [m] of the locations, evenly on the circle from (radius, 0) on, and their worths (N,), falling.

    Raises:
        TaskError: if there is no location.
    """
    if count < 1:
        raise TaskError(f"locations of the point mass must be at least 1, got {count}")
    angle = 2 * np.pi * np.arange(count) / count
    return RADIUS_M * np.stack([np.cos(angle), np.sin(angle)], -1), np.linspace(1.0, LEAST_WORTH, count)


def next_position(position: Array, velocity: Array, noise: Array) -> Array:
    """One step, s' = s + dt a + sigma w, all (..., 2), w standard normal."""
    return position + CONTROL_PERIOD_S * velocity + MOTION_NOISE_M * noise


def reward(arrived: Array, velocity: Array, positions: Array, worths: Array) -> Array:
    """Gaussian bumps where the step arrives, less the cost of its action: (...,) for (..., 2)."""
    squared_distance = ((arrived[..., None, :] - positions) ** 2).sum(-1)
    bumps = np.exp(-squared_distance / (2 * WIDTH_M**2))
    total: Array = (worths * bumps).sum(-1) - ACTION_COST * (velocity**2).sum(-1)
    return total


class PointMass(gymnasium.Env[Array, NDArray[np.float32]]):
    """Observation: position, (2,) in m. Action: commanded velocity, (2,) in m/s, each within [-1, 1].

    An episode starts near the middle and never terminates; the plane has no walls. From the middle the locations are
    equally far, so under a policy that makes for the nearest one the motion noise decides which it is.

    Args:
        locations: how many, at least 1.
        render_mode: `rgb_array` or None.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 (as Gymnasium has it)
    observation_channels = (("x_position", "m"), ("y_position", "m"))
    """Name and unit of every component of the observation."""
    action_channels = (("x_velocity", "m/s"), ("y_velocity", "m/s"))
    """Name and unit of every component of the action."""
    dt = CONTROL_PERIOD_S

    def __init__(self, *, locations: int = 2, render_mode: str | None = None) -> None:
        self.positions, self.worths = reward_locations(locations)
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.render_mode = render_mode
        self._position = np.zeros(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Start near the middle."""
        super().reset(seed=seed, options=options)
        self._position = START_SPREAD_M * self.np_random.standard_normal(2)
        return self._position, {}

    def step(self, action: NDArray[np.float32]) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move for one control period of 0.1 s; commands beyond the limits act and cost as the limits."""
        velocity = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        self._position = next_position(self._position, velocity, self.np_random.standard_normal(2))
        gained = float(reward(self._position, velocity, self.positions, self.worths))
        return self._position, gained, False, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """The reward as shades of green, the point in red: (256, 256, 3); None without `rgb_array`."""
        if self.render_mode != "rgb_array":
            return None
        axis = np.linspace(-PICTURE_REACH_M, PICTURE_REACH_M, PICTURE_SIZE)
        plane = np.stack(np.meshgrid(axis, -axis), -1)
        shade = np.clip(reward(plane, np.zeros(2), self.positions, self.worths), 0.0, 1.0)[..., None]
        picture = 255 * (1 - shade) + np.array([30.0, 130.0, 76.0]) * shade
        picture[((plane - self._position) ** 2).sum(-1) < POINT_RADIUS_M**2] = [200.0, 30.0, 30.0]
        return picture.round().astype(np.uint8)
