"""What the components of an observation are of a MuJoCo state, so that one can be had from the other."""

import math
from collections.abc import Mapping
from typing import Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from sim_bridge.tasks import TaskError

Rows = NDArray[np.float64]
Component = tuple[str, int]
"""`position` or `velocity` of a joint, `cosine` or `sine` of its position, with the joint's index; `other` for anything else."""

# Layouts of tasks that do not report theirs, by the class of the task.
KNOWN_LAYOUTS: dict[str, tuple[Component, ...]] = {
    "InvertedDoublePendulumEnv": (
        ("position", 0),
        *(("sine", joint) for joint in (1, 2)),
        *(("cosine", joint) for joint in (1, 2)),
        *(("velocity", joint) for joint in (0, 1, 2)),
        ("other", 0),
    )
}
BEYOND_ANY_LIMIT = 1e6
REMEDY = "choose the world model cvae, ensemble or flow instead"


class MujocoTask(Protocol):
    """What is used of a Gymnasium MuJoCo task."""

    model: mujoco.MjModel
    data: mujoco.MjData
    init_qpos: Rows
    frame_skip: int

    def _get_obs(self) -> Rows: ...


class ObservationLayout:
    """Observation (S,) of a task to state (2n,), n joint positions and n velocities, and back, each with its Jacobian.

    Positions that are not observed stay where the task starts; `other` components stay as they were observed.

    Args:
        task: a Gymnasium MuJoCo task without its wrappers. It tells its layout by `observation_state`, a tuple of
            components, and the limit it holds joint speeds to by `speed_limit`; else by Gymnasium's
            `observation_structure`.

    Raises:
        TaskError: if the layout is not known, does not fit what the task observes, or does not determine the state.
    """

    def __init__(self, task: MujocoTask) -> None:
        self.name = type(task).__name__
        model: mujoco.MjModel = task.model
        hinge_or_slide = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
        if not np.isin(model.jnt_type, hinge_or_slide).all() or model.na:
            raise TaskError(
                f"the hybrid world model needs hinge and slide joints and actuators without state, {self.name} has others; {REMEDY}"
            )
        self.joints = int(model.nv)
        self.components = _components(task, self.joints)
        self.start = np.array(task.init_qpos, dtype=np.float64)
        self._require_whole_state(model)
        self.speed_limit = self._probe(task)

    def state(self, observation: Rows) -> tuple[Rows, Rows]:
        """State (2n,) and its Jacobian (2n, S)."""
        state = np.concatenate([self.start, np.zeros(self.joints)])
        jacobian = np.zeros((2 * self.joints, len(self.components)))
        cosine, sine = np.zeros(self.joints), np.zeros(self.joints)
        for index, ((kind, joint), value) in enumerate(zip(self.components, observation, strict=True)):
            if kind in {"position", "velocity"}:
                row = joint + self.joints * (kind == "velocity")
                state[row], jacobian[row, index] = value, 1.0
            elif kind == "cosine":
                cosine[joint] = value
            elif kind == "sine":
                sine[joint] = value
        for index, (kind, joint) in enumerate(self.components):
            if kind in {"cosine", "sine"}:
                state[joint] = math.atan2(sine[joint], cosine[joint])
                other = cosine[joint] if kind == "sine" else -sine[joint]
                jacobian[joint, index] = other / max(cosine[joint] ** 2 + sine[joint] ** 2, 1e-12)
        return state, jacobian

    def observation(self, state: Rows, before: Rows) -> tuple[Rows, Rows, Rows]:
        """Observation (S,), its Jacobian by the state (S, 2n), and by the observation `before` (S, S)."""
        size = len(self.components)
        observation, by_state, by_before = np.zeros(size), np.zeros((size, 2 * self.joints)), np.zeros((size, size))
        for index, (kind, joint) in enumerate(self.components):
            position, speed, limit = state[joint], state[self.joints + joint], self.speed_limit[joint]
            if kind == "position":
                observation[index], by_state[index, joint] = position, 1.0
            elif kind == "velocity":
                observation[index] = min(max(speed, -limit), limit)
                by_state[index, self.joints + joint] = float(abs(speed) < limit)
            elif kind == "cosine":
                observation[index], by_state[index, joint] = math.cos(position), -math.sin(position)
            elif kind == "sine":
                observation[index], by_state[index, joint] = math.sin(position), math.cos(position)
            else:
                observation[index], by_before[index, index] = before[index], 1.0
        return observation, by_state, by_before

    def _require_whole_state(self, model: mujoco.MjModel) -> None:
        observed = {(kind, joint) for kind, joint in self.components if kind != "other"}
        slide = model.jnt_type == int(mujoco.mjtJoint.mjJNT_SLIDE)
        for joint in range(self.joints):
            both = {("cosine", joint), ("sine", joint)} <= observed
            if not (("position", joint) in observed or both or slide[joint]):
                raise TaskError(f"{self.name} does not observe the angle of joint {joint}; {REMEDY}")
            if ("velocity", joint) not in observed:
                raise TaskError(f"{self.name} does not observe the velocity of joint {joint}; {REMEDY}")

    def _probe(self, task: MujocoTask) -> Rows:
        """Make sure that the task observes what the layout says, and find the limits it clips speeds to, (n,)."""
        kept, task.data = task.data, mujoco.MjData(task.model)
        try:
            state = np.concatenate([self.start + np.linspace(0.01, 0.02, self.joints), np.linspace(-1, 1, self.joints)])
            task.data.qpos[:], task.data.qvel[:] = np.split(state, 2)
            seen = np.asarray(task._get_obs(), dtype=np.float64)
            task.data.qvel[:] = BEYOND_ANY_LIMIT
            fast = np.asarray(task._get_obs(), dtype=np.float64)
        finally:
            task.data = kept
        self.speed_limit = np.full(self.joints, math.inf)
        if seen.shape != (len(self.components),) or not np.allclose(seen, self.observation(state, seen)[0]):
            raise TaskError(f"{self.name} does not observe what its observation layout says; {REMEDY}")
        limit = np.full(self.joints, float(getattr(task, "speed_limit", math.inf)))
        for (kind, joint), speed in zip(self.components, fast, strict=True):
            if kind == "velocity" and speed < BEYOND_ANY_LIMIT:
                limit[joint] = min(limit[joint], speed)
        return limit


def _components(task: MujocoTask, joints: int) -> tuple[Component, ...]:
    told: tuple[Component, ...] | None = getattr(task, "observation_state", None)
    told = told or KNOWN_LAYOUTS.get(type(task).__name__)
    if told is not None:
        return told
    structure: Mapping[str, int] | None = getattr(task, "observation_structure", None)
    if structure is None:
        raise TaskError(
            f"the hybrid world model must know the MuJoCo state behind an observation, {type(task).__name__} does not tell it; "
            f"give the task an `observation_state`, or {REMEDY}"
        )
    skipped = structure.get("skipped_qpos", 0)
    known = {
        "qpos": [("position", joint) for joint in range(skipped, joints)],
        "qvel": [("velocity", joint) for joint in range(joints)],
    }
    components: list[Component] = []
    for segment, length in structure.items():
        if segment != "skipped_qpos":
            components += known.get(segment, [("other", 0)] * length)
    return tuple(components)
