"""Swing a rod up and hold it there with a motor too weak to lift it: the classic control task, on MuJoCo.

Costs and proportions are those of Gymnasium's Pendulum-v1; the physics is MuJoCo's, so that the perturbations of MuJoCo
tasks apply.
"""

from pathlib import Path

import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box
from numpy.typing import NDArray

MODEL = Path(__file__).with_suffix(".xml")
FRAMES_PER_STEP = 5
UPRIGHT_COST, SPEED_COST, TORQUE_COST = 1.0, 0.1, 0.001
MAX_TORQUE = 2.0
MAX_SPEED = 8.0
Observation = NDArray[np.float64]


class PendulumSwingUp(MujocoEnv):
    """Observation: cosine and sine of the angle from upright, angular velocity. Action: torque at the hinge.

    Reward per step: -(angle^2 + 0.1 velocity^2 + 0.001 torque^2). An episode starts anywhere and never terminates; a
    governor keeps the speed below 8 rad/s.
    """

    metadata = {"render_modes": ["rgb_array", "depth_array", "rgbd_tuple"], "render_fps": 20}  # noqa: RUF012 (as Gymnasium has it)
    observation_channels = (("hinge_cosine", "1"), ("hinge_sine", "1"), ("hinge_velocity", "rad/s"))
    """Name and unit of every component of the observation."""
    observation_state = (("cosine", 0), ("sine", 0), ("velocity", 0))
    """What every component is of the MuJoCo state: kind and joint."""
    speed_limit = MAX_SPEED
    """Joint speeds after a step stay within it, in rad/s."""

    def __init__(self, render_mode: str | None = None) -> None:
        size = len(self.observation_channels)
        space = Box(-np.inf, np.inf, (size,), np.float64)
        super().__init__(str(MODEL), FRAMES_PER_STEP, space, render_mode=render_mode, camera_name="side")

    def step(self, action: NDArray[np.float32]) -> tuple[Observation, np.float64, bool, bool, dict[str, np.float64]]:
        """Hold the torque, (1,) in N m, for one control period of 0.05 s."""
        angle, velocity = self._angle(), self.data.qvel[0]
        torque = np.clip(action, -MAX_TORQUE, MAX_TORQUE)
        cost = UPRIGHT_COST * angle**2 + SPEED_COST * velocity**2 + TORQUE_COST * float(torque[0]) ** 2
        self.do_simulation(torque, self.frame_skip)
        self.data.qvel[0] = np.clip(self.data.qvel[0], -MAX_SPEED, MAX_SPEED)
        return self._get_obs(), np.float64(-cost), False, False, {}

    def reset_model(self) -> Observation:
        """Any angle, a velocity of at most 1 rad/s."""
        self.data.qpos[0] = self.np_random.uniform(-np.pi, np.pi)
        self.data.qvel[0] = self.np_random.uniform(-1.0, 1.0)
        mujoco.mj_forward(self.model, self.data)
        return self._get_obs()

    def _get_obs(self) -> Observation:
        return np.array([np.cos(self.data.qpos[0]), np.sin(self.data.qpos[0]), self.data.qvel[0]])

    def _angle(self) -> float:
        """From upright, in [-pi, pi)."""
        return float((self.data.qpos[0] + np.pi) % (2 * np.pi) - np.pi)
