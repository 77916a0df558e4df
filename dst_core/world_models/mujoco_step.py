"""MuJoCo's own step as a differentiable function of observation and action: the mean of the hybrid world model.

What the simulator does not tell (noise, hidden forces, the reward) is for a learned model of the residual to say, for
instance `ConditionalVae(..., base=mujoco_step_of(env))`.
"""

from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dst_core.world_models.mujoco_state import REMEDY, ObservationLayout, Rows
from sim_bridge.tasks import TaskError
from sim_bridge.tasks.perturbations import Environment, box, task_name

DIFFERENCE = 1e-6  # of state and control, as MuJoCo's manual suggests for centred differences
REMEMBERED = 100_000
Slopes = NDArray[np.float32]
Linearisation = tuple[Rows, Slopes]
"""Next observation (S,) and its Jacobian (S, S + A)."""


class MujocoStep:
    """Observation (R, S) and action (R, A) to the next observation (R, S) after one control step without noise.

    Jacobians are chained over the frames of the step from `mjd_transitionFD`. They come from the same MuJoCo model as
    the step, a copy that integrates implicitly (`implicitfast`) where the task uses RK4, which `mjd_transitionFD`
    refuses. Every distinct row that is differentiated is simulated once and remembered, since replayed rows come back. Rows without
    a gradient, of imagined rollouts say, pay for the step alone and are not remembered: no other will be the same.

    Args:
        model: the task's MuJoCo model; actions are its controls.
        layout: between observations and states of the model.
        frames: MuJoCo steps per control step.
        remembered: rows kept, the least recently used leave first; each takes about 4 S (S + A) bytes.
    """

    def __init__(
        self, model: mujoco.MjModel, layout: ObservationLayout, *, frames: int, remembered: int = REMEMBERED
    ) -> None:
        self.model = copy(model)
        if self.model.opt.integrator == int(mujoco.mjtIntegrator.mjINT_RK4):
            self.model.opt.integrator = int(mujoco.mjtIntegrator.mjINT_IMPLICITFAST)
        # A step may depend on nothing but its row: not on the one simulated before, not on a reset after a blow-up.
        self.model.opt.disableflags |= int(
            mujoco.mjtDisableBit.mjDSBL_WARMSTART | mujoco.mjtDisableBit.mjDSBL_AUTORESET
        )
        self.data = mujoco.MjData(self.model)
        self.layout = layout
        self.frames = frames
        self.remembered = remembered
        self.memory: OrderedDict[bytes, Linearisation] = OrderedDict()

    def __call__(self, observation: Tensor, action: Tensor) -> Tensor:
        """The next observation, differentiable once in both arguments."""
        rows = torch.cat([observation, action], -1).detach().cpu().double().numpy()
        keys = [row.tobytes() for row in rows]
        distinct = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        place = torch.tensor([distinct[key] for key in keys], device=observation.device)

        def spread(of_distinct: Sequence[Rows | Slopes]) -> Tensor:
            return torch.from_numpy(np.stack(of_distinct)).to(observation)[place]

        if not (torch.is_grad_enabled() and (observation.requires_grad or action.requires_grad)):
            return spread([self._following(key) for key in distinct])
        linearised = [self._linearised(key) for key in distinct]
        following, jacobian = spread([step for step, _ in linearised]), spread([slope for _, slope in linearised])
        moved = torch.cat([observation, action], -1)
        return following + torch.einsum("rij,rj->ri", jacobian, moved - moved.detach())

    def _following(self, row: bytes) -> Rows:
        """Next observation (S,) for the bytes of an observation and an action: remembered, or stepped to without a Jacobian."""
        if row in self.memory:
            return self.memory[row][0]
        observation, action = self._split(row)
        if not (
            np.isfinite(observation).all() and np.isfinite(action).all()
        ):  # MuJoCo would replace them without a word
            return np.full(len(observation), np.nan)
        state, _ = self.layout.state(observation)
        self._place(state, action)
        mujoco.mj_step(self.model, self.data, self.frames)
        return self.layout.observation(self._state(), observation)[0]

    def _linearised(self, row: bytes) -> Linearisation:
        """The same with its Jacobian (S, S + A), from memory where it is there."""
        found = self.memory.pop(row, None) or self._linearise(row)
        self.memory[row] = found
        if len(self.memory) > self.remembered:
            self.memory.popitem(last=False)
        return found

    def _linearise(self, row: bytes) -> Linearisation:
        observation, action = self._split(row)
        if not (np.isfinite(observation).all() and np.isfinite(action).all()):
            size = len(observation)
            return np.full(size, np.nan), np.full((size, size + len(action)), np.nan, np.float32)
        state, state_by_observation = self.layout.state(observation)
        following, by_state, by_action = self._step(state, action)
        observed, by_following, by_observation = self.layout.observation(following, observation)
        jacobian = np.concatenate(
            [by_following @ by_state @ state_by_observation + by_observation, by_following @ by_action], 1
        )
        return observed, jacobian.astype(np.float32)

    def _step(self, state: Rows, action: Rows) -> tuple[Rows, Rows, Rows]:
        """State (2n,) after `frames` MuJoCo steps, and its Jacobians by state (2n, 2n) and action (2n, A)."""
        data, size = self.data, len(state)
        self._place(state, action)
        by_state, by_action = np.eye(size), np.zeros((size, len(action)))
        A, B = np.zeros((size, size)), np.zeros((size, len(action)))
        for _ in range(self.frames):
            mujoco.mjd_transitionFD(self.model, data, DIFFERENCE, True, A, B, None, None)
            mujoco.mj_step(self.model, data)
            by_state, by_action = A @ by_state, A @ by_action + B
        return self._state(), by_state, by_action

    def _split(self, row: bytes) -> list[Rows]:
        return np.split(np.frombuffer(row), [-self.model.nu])

    def _place(self, state: Rows, action: Rows) -> None:
        self.data.qpos[:], self.data.qvel[:] = np.split(state, 2)
        self.data.ctrl[:] = action

    def _state(self) -> Rows:
        return np.concatenate([self.data.qpos, self.data.qvel])


def mujoco_step_of(env: Environment, *, remembered: int = REMEMBERED) -> MujocoStep:
    """The step of the task behind an environment, as the task's own model has it: perturbations are for the residual.

    Call it before the first reset of an environment that perturbs the model itself. The environment is left as it is.

    Raises:
        TaskError: if the task is not MuJoCo's, its actions are not the model's controls, or its observations do not
            tell the state.
    """
    task: Any = env.unwrapped
    name = task_name(env)
    model = getattr(task, "model", None)
    if not isinstance(model, mujoco.MjModel):
        raise TaskError(f"the hybrid world model must have a MuJoCo task, got {name}; {REMEDY}")
    actions = box(env.action_space)
    limits = np.stack([actions.low, actions.high], -1)
    if limits.shape != model.actuator_ctrlrange.shape or not np.allclose(limits, model.actuator_ctrlrange):
        raise TaskError(
            f"the hybrid world model needs actions that are the controls of the MuJoCo model, those of {name} are scaled; {REMEDY}"
        )
    layout = ObservationLayout(task)
    if env.observation_space.shape != (len(layout.components),):
        raise TaskError(
            f"the hybrid world model needs the task's own observation of {len(layout.components)} numbers, "
            f"{name} is wrapped to give {env.observation_space.shape}; {REMEDY}"
        )
    return MujocoStep(model, layout, frames=task.frame_skip, remembered=remembered)
