"""Pushes between the control steps."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim_bridge.tasks.perturbations.wrapper import Environment, PerturbationWrapper


class DynamicsNoise(PerturbationWrapper):
    """Adds N(0, scale²) to the joint velocities once per control step, in m/s and rad/s.

    The kick comes between two control steps, just before MuJoCo integrates the later one, so that observation, reward
    and termination of a step all belong to one state. Only joints of kinematic trees that an actuator drives are
    disturbed: a target that is modelled as a body stays where the task put it.
    """

    name = "dynamics"
    stream = 3

    def __init__(self, env: Environment, scale: float) -> None:
        super().__init__(env, scale)
        model = self._mujoco_model()
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
