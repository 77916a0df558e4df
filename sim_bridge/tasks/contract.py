"""What the numbers of a task mean: names, units and limits of its observation and action vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import mujoco

from sim_bridge.tasks.mujoco_channels import UNKNOWN_UNIT, NamedUnit, action_channels, observation_channels
from sim_bridge.tasks.perturbations import Environment, PerturbationWrapper, box, task_name

DEFAULT_CONTROL_PERIOD_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One number of an observation or action vector."""

    name: str
    """Unique within its vector."""
    unit: str
    """Such as `rad/s`; `200 N m` where one action unit is 200 N m; `1` if dimensionless; `unknown` if not told."""
    low: float
    """Lower limit in that unit, -infinity where unbounded."""
    high: float
    """Upper limit in that unit, +infinity where unbounded."""


@dataclass(frozen=True, kw_only=True)
class TaskContract:
    """What a policy and a robot must agree on before anything moves."""

    environment: str
    """Gymnasium id."""
    observation: tuple[Channel, ...]
    """Channels of the observation vector (S,), in order."""
    action: tuple[Channel, ...]
    """Channels of the action vector (A,), in order."""
    control_period_s: float
    """Seconds between two decisions."""


def describe_task(env: Environment) -> TaskContract:
    """The contract of a task made by `make_task`.

    Channels are named as the task tells (`observation_channels`, `action_channels`: name and unit of each), else after
    the joints and actuators of its MuJoCo model wherever the layout that the task reports fits the size of its space;
    other components are `observation_i` and `action_i`. Observation limits are those of the sensors without
    perturbations: noise is the world's, not the contract's.

    The control period is the task's own `dt` (for MuJoCo its time step times the frames per step), else one over the
    `render_fps` of its metadata, else 0.02 s.
    """
    while isinstance(env, PerturbationWrapper):
        env = env.env
    task: Any = env.unwrapped
    model = getattr(task, "model", None)
    named_observation: Sequence[NamedUnit] | None = None
    named_action: Sequence[NamedUnit] | None = None
    if isinstance(model, mujoco.MjModel):
        named_observation = observation_channels(model, getattr(task, "observation_structure", None))
        named_action = action_channels(model)
    named_observation = getattr(task, "observation_channels", named_observation)
    named_action = getattr(task, "action_channels", named_action)
    return TaskContract(
        environment=task_name(env),
        observation=_channels("observation", box(env.observation_space), named_observation),
        action=_channels("action", box(env.action_space), named_action),
        control_period_s=_control_period_s(env),
    )


def _channels(role: str, space: gymnasium.spaces.Box, named: Sequence[NamedUnit] | None) -> tuple[Channel, ...]:
    size = space.shape[0]
    if named is None or len(named) != size or len({name for name, _ in named}) != size:
        named = [(f"{role}_{index}", UNKNOWN_UNIT) for index in range(size)]
    return tuple(
        Channel(name=name, unit=unit, low=float(low), high=float(high))
        for (name, unit), low, high in zip(named, space.low, space.high, strict=True)
    )


def _control_period_s(env: Environment) -> float:
    dt = getattr(env.unwrapped, "dt", None)
    if isinstance(dt, float) and math.isfinite(dt) and dt > 0.0:
        return dt
    render_fps = env.metadata.get("render_fps")
    if isinstance(render_fps, (int, float)) and render_fps > 0:
        return 1.0 / render_fps
    return DEFAULT_CONTROL_PERIOD_S
