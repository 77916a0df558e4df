"""What every perturbation is: a wrapper with a name, a scale and a noise stream of its own."""

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
    """A task with one source of disturbance of the given scale."""

    name: ClassVar[str]
    """What it is called on a command line."""
    stream: ClassVar[int]
    """Sets its noise apart from that of the others and of the task; never changed, or seeds would mean other episodes."""
    requirement: ClassVar[str] = "be a finite number >= 0"
    """What its scale must be, for the error."""

    def __init__(self, env: Environment, scale: float) -> None:
        RecordConstructorArgs.__init__(self, scale=scale)
        gymnasium.Wrapper.__init__(self, env)
        self.scale = scale
        self._noise = np.random.default_rng()

    @classmethod
    def admits(cls, scale: float) -> bool:
        """Whether a finite scale meets the requirement."""
        return scale >= 0.0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode; a seed restarts this perturbation's noise stream too."""
        if seed is not None:
            self._noise = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(self.stream,)))
        self._begin_episode()
        return self.env.reset(seed=seed, options=options)

    def _begin_episode(self) -> None:
        """Draw what holds for the whole episode, before the task starts it."""

    def _mujoco_model(self) -> mujoco.MjModel:
        """The task's model.

        Raises:
            TaskError: if the task has none.
        """
        task: Any = self.env.unwrapped
        model = getattr(task, "model", None)
        if not isinstance(model, mujoco.MjModel):
            raise TaskError(
                f"perturbation {self.name!r} must have a MuJoCo task, got {task_name(self.env)!r}; "
                "actuation, observation, dropout and delay fit every task"
            )
        return model


def task_name(env: Environment) -> str:
    """The Gymnasium id, or the name of the class where the task was not built from one."""
    return env.spec.id if env.spec is not None else type(env.unwrapped).__name__


def box(space: gymnasium.Space[Any]) -> gymnasium.spaces.Box:
    """The space as the Box that `make_task` has checked it to be."""
    return cast(gymnasium.spaces.Box, space)
