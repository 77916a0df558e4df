"""Sensors that err, drop out and lag."""

from abc import abstractmethod
from collections import deque
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from sim_bridge.tasks.perturbations.wrapper import Environment, PerturbationWrapper, box


class SensorWrapper(PerturbationWrapper):
    """Changes what is observed and nothing of what happens."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode and deliver its first observation."""
        observation, info = super().reset(seed=seed, options=options)
        return self._deliver_first(observation), info

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], Any, bool, bool, dict[str, Any]]:
        """Deliver the observation that follows the action."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._deliver(observation), reward, terminated, truncated, info

    @abstractmethod
    def _deliver_first(self, observation: NDArray[Any]) -> NDArray[Any]:
        """What is observed of (S,) at the start of an episode."""

    @abstractmethod
    def _deliver(self, observation: NDArray[Any]) -> NDArray[Any]:
        """What is observed of (S,) at a later tick."""


class ObservationNoise(SensorWrapper):
    """Multiplies each observation component by U[1 - scale, 1 + scale].

    The observation space grows to what the noise can reach.
    """

    name = "observation"
    stream = 2
    requirement = "be a number >= 0 and at most 1"

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

    @classmethod
    def admits(cls, scale: float) -> bool:
        """At most 1, so that no sign changes."""
        return 0.0 <= scale <= 1.0

    def _deliver_first(self, observation: NDArray[Any]) -> NDArray[Any]:
        return self._deliver(observation)

    def _deliver(self, observation: NDArray[Any]) -> NDArray[Any]:
        factor = self._noise.uniform(1.0 - self.scale, 1.0 + self.scale, observation.shape)
        return (observation * factor).astype(observation.dtype)


class Dropout(SensorWrapper):
    """Each observation component keeps its last delivered value with probability `scale` per tick, on its own.

    The first observation of an episode always arrives.
    """

    name = "dropout"
    stream = 7
    requirement = "be a probability, >= 0 and at most 1"

    @classmethod
    def admits(cls, scale: float) -> bool:
        """Probabilities."""
        return 0.0 <= scale <= 1.0

    def _deliver_first(self, observation: NDArray[Any]) -> NDArray[Any]:
        self._delivered = observation.copy()
        return observation

    def _deliver(self, observation: NDArray[Any]) -> NDArray[Any]:
        dropped = self._noise.random(observation.shape) < self.scale
        self._delivered = np.where(dropped, self._delivered, observation)
        return self._delivered.copy()


class Delay(SensorWrapper):
    """Delivers the observation of `scale` control periods ago, a whole number; until there is one, the first."""

    name = "delay"
    stream = 8
    requirement = "be a whole number of control periods >= 0"

    def __init__(self, env: Environment, scale: float) -> None:
        super().__init__(env, scale)
        self._on_the_way: deque[NDArray[Any]] = deque(maxlen=int(scale) + 1)

    @classmethod
    def admits(cls, scale: float) -> bool:
        """Whole control periods."""
        return scale >= 0.0 and scale.is_integer()

    def _deliver_first(self, observation: NDArray[Any]) -> NDArray[Any]:
        self._on_the_way.clear()
        return self._deliver(observation)

    def _deliver(self, observation: NDArray[Any]) -> NDArray[Any]:
        self._on_the_way.append(observation.copy())
        return self._on_the_way[0].copy()
