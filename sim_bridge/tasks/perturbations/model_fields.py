"""A robot that is not quite the one in the model: friction, masses and gravity drawn anew for every episode."""

from abc import abstractmethod

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim_bridge.errors import TaskError
from sim_bridge.tasks.perturbations.wrapper import Environment, PerturbationWrapper, task_name


class ModelFieldFactor(PerturbationWrapper):
    """Multiplies fields of the MuJoCo model by one factor per episode, U[1 - scale, 1 + scale].

    The factor always applies to the values that the model had when it was wrapped, so episodes do not compound, and it
    is in place before the task's own reset, so the first observation belongs to the changed model.
    """

    requirement = "be a number >= 0 and below 1"

    def __init__(self, env: Environment, scale: float) -> None:
        super().__init__(env, scale)
        self._nominal = [field.copy() for field in self._fields(self._mujoco_model())]
        if not any(field.any() for field in self._nominal):
            raise TaskError(
                f"perturbation {self.name!r} must have something to multiply, but it is zero throughout "
                f"{task_name(env)!r}; leave it out there"
            )

    @classmethod
    def admits(cls, scale: float) -> bool:
        """Below 1, so that no factor is zero or negative."""
        return 0.0 <= scale < 1.0

    def _begin_episode(self) -> None:
        factor = self._noise.uniform(1.0 - self.scale, 1.0 + self.scale)
        model = self._mujoco_model()
        for field, nominal in zip(self._fields(model), self._nominal, strict=True):
            field[...] = factor * nominal
        self._derive(model)

    @staticmethod
    @abstractmethod
    def _fields(model: mujoco.MjModel) -> tuple[NDArray[np.float64], ...]:
        """Views of what is multiplied."""

    def _derive(self, model: mujoco.MjModel) -> None:
        """Bring the constants that MuJoCo derives from the fields up to date."""


class Friction(ModelFieldFactor):
    """Friction of every kind.

    Sliding friction of contacts (torsional and rolling friction stay), dry friction of joints and tendons, and damping
    of joints: many tasks resist motion by damping alone.
    """

    name = "friction"
    stream = 4

    @staticmethod
    def _fields(model: mujoco.MjModel) -> tuple[NDArray[np.float64], ...]:
        sliding = (model.geom_friction[:, 0], model.pair_friction[:, :2])
        return (*sliding, model.dof_frictionloss, model.tendon_frictionloss, model.dof_damping)


class Mass(ModelFieldFactor):
    """Masses and inertias of all bodies together, as if the robot were built of denser or lighter material."""

    name = "mass"
    stream = 5

    @staticmethod
    def _fields(model: mujoco.MjModel) -> tuple[NDArray[np.float64], ...]:
        return (model.body_mass, model.body_inertia)

    def _derive(self, model: mujoco.MjModel) -> None:
        # Data of its own: mj_setConst moves the bodies it is given to their reference pose.
        mujoco.mj_setConst(model, mujoco.MjData(model))


class Gravity(ModelFieldFactor):
    """The gravity vector, in length and not in direction."""

    name = "gravity"
    stream = 6

    @staticmethod
    def _fields(model: mujoco.MjModel) -> tuple[NDArray[np.float64], ...]:
        return (model.opt.gravity,)
