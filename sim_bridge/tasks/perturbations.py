"""Noise on actuation, observation and dynamics, as Gymnasium wrappers written `name=scale`.

Each wrapper draws from a stream of its own, spawned from the seed given to `reset`: the same seed gives the same
episode, and adding one perturbation changes neither the others' noise nor the task's own initial state. Without a seed
the stream goes on where it was, as Gymnasium environments do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import gymnasium
import mujoco
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from sim_bridge.errors import TaskError

Environment = gymnasium.Env[NDArray[Any], NDArray[Any]]


class PerturbationWrapper(
    gymnasium.Wrapper[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]], RecordConstructorArgs
):
    """A task with one source of noise of the given scale."""

    stream: ClassVar[int]

    def __init__(self, env: Environment, scale: float) -> None:
        RecordConstructorArgs.__init__(self, scale=scale)
        gymnasium.Wrapper.__init__(self, env)
        self.scale = scale
        self._noise = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode; a seed restarts this perturbation's noise stream too."""
        if seed is not None:
            self._noise = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(self.stream,)))
        return self.env.reset(seed=seed, options=options)


class ActuationNoise(PerturbationWrapper):
    """Adds N(0, (scale x half the action range)²) to each action component, then clips to the action limits."""

    stream = 1

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], Any, bool, bool, dict[str, Any]]:
        """Apply the disturbed action."""
        space = box(self.env.action_space)
        sigma = self.scale * (space.high - space.low) / 2.0
        noisy = action + sigma * self._noise.standard_normal(space.shape)
        return self.env.step(np.clip(noisy, space.low, space.high).astype(space.dtype))


class ObservationNoise(PerturbationWrapper):
    """Multiplies each observation component by U[1 - scale, 1 + scale].

    The observation space grows to what the noise can reach.
    """

    stream = 2

    def __init__(self, env: Environment, scale: float) -> None:
        super().__init__(env, scale)
        space = box(env.observation_space)
        reachable = np.stack([bound * (1.0 + side * scale) for bound in (space.low, space.high) for side in (-1, 1)])
        if scale == 1.0:  # 0 x infinity
            reachable = np.nan_to_num(reachable, nan=0.0, posinf=np.inf, neginf=-np.inf)
        dtype: Any = space.dtype
        self.observation_space = gymnasium.spaces.Box(
            reachable.min(axis=0).astype(dtype), reachable.max(axis=0).astype(dtype), dtype=dtype
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode with a disturbed first observation."""
        observation, info = super().reset(seed=seed, options=options)
        return self._disturb(observation), info

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], Any, bool, bool, dict[str, Any]]:
        """Disturb the observation that follows the action."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._disturb(observation), reward, terminated, truncated, info

    def _disturb(self, observation: NDArray[Any]) -> NDArray[Any]:
        factor = self._noise.uniform(1.0 - self.scale, 1.0 + self.scale, observation.shape)
        return (observation * factor).astype(observation.dtype)


class DynamicsNoise(PerturbationWrapper):
    """Adds N(0, scale²) to the joint velocities once per control step, in m/s and rad/s.

    The kick comes between two control steps, just before MuJoCo integrates the later one, so that observation, reward
    and termination of a step all belong to one state. Only joints of kinematic trees that an actuator drives are
    disturbed: a target that is modelled as a body stays where the task put it.
    """

    stream = 3

    def __init__(self, env: Environment, scale: float) -> None:
        super().__init__(env, scale)
        task: Any = env.unwrapped
        model = getattr(task, "model", None)
        if not isinstance(model, mujoco.MjModel):
            name = env.spec.id if env.spec else type(task).__name__
            raise TaskError(
                f"perturbation 'dynamics' must have a MuJoCo task, got {name!r}; use 'actuation' or 'observation' there"
            )
        joint_driven = model.actuator_trntype == int(mujoco.mjtTrn.mjTRN_JOINT)
        driven_joints = model.actuator_trnid[joint_driven, 0]
        driven_trees = np.unique(model.dof_treeid[model.jnt_dofadr[driven_joints]])
        self._velocities = (
            np.flatnonzero(np.isin(model.dof_treeid, driven_trees)) if driven_trees.size else np.arange(model.nv)
        )

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], Any, bool, bool, dict[str, Any]]:
        """Kick the joint velocities, then apply the action."""
        task: Any = self.unwrapped
        task.data.qvel[self._velocities] += self.scale * self._noise.standard_normal(self._velocities.size)
        return self.env.step(action)


PERTURBATIONS: dict[str, type[PerturbationWrapper]] = {
    "actuation": ActuationNoise,
    "observation": ObservationNoise,
    "dynamics": DynamicsNoise,
}


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """One source of noise."""

    name: str
    """Which one: a key of `PERTURBATIONS`."""
    scale: float
    """Its strength; what it multiplies is said by the wrapper of that name."""

    def __post_init__(self) -> None:
        if self.name not in PERTURBATIONS:
            raise TaskError(f"perturbation must be one of {', '.join(PERTURBATIONS)}, got {self.name!r}")
        if not (math.isfinite(self.scale) and self.scale >= 0.0):
            raise TaskError(f"scale of perturbation {self.name!r} must be a finite number >= 0, got {self.scale}")
        if self.name == "observation" and self.scale > 1.0:
            raise TaskError(f"scale of perturbation 'observation' must be at most 1, got {self.scale}")


def parse_perturbation(text: str) -> Perturbation:
    """Read `name=scale`, for instance `actuation=0.1`.

    Raises:
        TaskError: if the text has another form, the name is unknown or the scale is not a usable number.
    """
    name, equals, scale = text.partition("=")
    if not equals:
        raise TaskError(
            f"perturbation must be written name=scale with name one of {', '.join(PERTURBATIONS)}, got {text!r}"
        )
    try:
        value = float(scale)
    except ValueError:
        raise TaskError(
            f"scale of perturbation {name!r} must be a number, got {scale!r}; for instance {name}=0.1"
        ) from None
    return Perturbation(name=name.strip(), scale=value)


def perturb(env: Environment, perturbations: Sequence[str]) -> Environment:
    """Wrap a task in perturbations written `name=scale`; the order makes no difference to the noise.

    Raises:
        TaskError: if one is malformed, named twice, or impossible for the task.
    """
    parsed = [parse_perturbation(text) for text in perturbations]
    names = [perturbation.name for perturbation in parsed]
    for name in names:
        if names.count(name) > 1:
            raise TaskError(f"perturbation {name!r} must be given once, got {', '.join(perturbations)}")
    for perturbation in parsed:
        env = PERTURBATIONS[perturbation.name](env, perturbation.scale)
    return env


def box(space: gymnasium.Space[Any]) -> gymnasium.spaces.Box:
    """The space as the Box that `make_task` has checked it to be."""
    return cast(gymnasium.spaces.Box, space)
