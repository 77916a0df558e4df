"""A simulated robot standing in for hardware: a task, most often MuJoCo, with its perturbations."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sim_bridge.robot import StepResult
from sim_bridge.tasks import TaskContract, describe_task, make_task


class MujocoRobot:
    """A task as a robot; physics advances by one control period per applied action.

    Args:
        environment_id: Gymnasium id.
        perturbations: `name=scale` texts, see `sim_bridge.tasks.perturbations`.

    Raises:
        TaskError: if the task or a perturbation does not exist or does not fit.
    """

    def __init__(self, environment_id: str, *, perturbations: Sequence[str] = ()) -> None:
        self._env = make_task(environment_id, perturbations=perturbations)
        self._contract = describe_task(self._env)
        low = np.array([channel.low for channel in self._contract.action], np.float32)
        high = np.array([channel.high for channel in self._contract.action], np.float32)
        self._neutral_action = np.clip(np.zeros_like(low), low, high)
        self._observation: NDArray[np.floating] = np.zeros(len(self._contract.observation))

    @property
    def contract(self) -> TaskContract:
        """Names, units, limits and control period."""
        return self._contract

    @property
    def neutral_action(self) -> NDArray[np.float32]:
        """(A,), zero, or the limit nearest to it."""
        return self._neutral_action

    def reset(self, seed: int) -> None:
        """Start the episode of this seed, noise included."""
        self._observation, _ = self._env.reset(seed=seed)

    def observe(self) -> NDArray[np.floating]:
        """(S,), what the sensors said after the last step."""
        return self._observation

    def apply(self, action: NDArray[np.float32]) -> StepResult:
        """Advance the simulation by one control period."""
        self._observation, reward, terminated, truncated, _ = self._env.step(action)
        return StepResult(reward=float(reward), terminated=bool(terminated), truncated=bool(truncated))

    def close(self) -> None:
        """Release the simulation."""
        self._env.close()
