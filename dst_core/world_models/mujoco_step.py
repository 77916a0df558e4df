"""MuJoCo's own step as a differentiable function of observation and action: the mean of the hybrid world model.

What the simulator does not tell (noise, hidden forces, the reward) is for a learned model of the residual to say, for
instance `ConditionalVae(..., base=mujoco_step_of(env))`.
"""

import functools
from copy import copy
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from dst_core.world_models.mujoco_state import REMEDY, ObservationLayout, Rows
from sim_bridge.tasks import TaskError
from sim_bridge.tasks.perturbations import Environment, box, task_name

DIFFERENCE = 1e-6  # of state and control, as MuJoCo's manual suggests for centred differences
REMEMBERED = 100_000


class MujocoStep:
    """Observation (R, S) and action (R, A) to the next observation (R, S) after one control step without noise.

    Jacobians are chained over the frames of the step from `mjd_transitionFD`. They come from the same MuJoCo model as
    the step, a copy that integrates implicitly (`implicitfast`) where the task uses RK4, which `mjd_transitionFD`
    refuses. Every distinct row is simulated once and remembered, since replayed rows come back.

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
        self.linearised = functools.lru_cache(remembered)(self._linearise)

    def __call__(self, observation: Tensor, action: Tensor) -> Tensor:
        """The next observation, differentiable once in both arguments."""
        rows = torch.cat([observation, action], -1).detach().cpu().double().numpy()
        keys = [row.tobytes() for row in rows]
        distinct = {key: place for place, key in enumerate(dict.fromkeys(keys))}
        steps = [self.linearised(key) for key in distinct]
        place = torch.tensor([distinct[key] for key in keys], device=observation.device)
        following = torch.from_numpy(np.stack([step for step, _ in steps])).to(observation)[place]
        if not (torch.is_grad_enabled() and (observation.requires_grad or action.requires_grad)):
            return following
        jacobian = torch.from_numpy(np.stack([jacobian for _, jacobian in steps])).to(observation)[place]
        moved = torch.cat([observation, action], -1)
        return following + torch.einsum("rij,rj->ri", jacobian, moved - moved.detach())

    def _linearise(self, row: bytes) -> tuple[Rows, np.ndarray[Any, np.dtype[np.float32]]]:
        """Next observation (S,) and its Jacobian (S, S + A) for the bytes of an observation and an action."""
        numbers = np.frombuffer(row)
        if not np.isfinite(numbers).all():  # MuJoCo would replace them without a word
            size = len(numbers) - self.model.nu
            return np.full(size, np.nan), np.full((size, len(numbers)), np.nan, np.float32)
        observation, action = np.split(numbers, [-self.model.nu])
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
        data.qpos[:], data.qvel[:] = np.split(state, 2)
        data.ctrl[:] = action
        by_state, by_action = np.eye(size), np.zeros((size, len(action)))
        A, B = np.zeros((size, size)), np.zeros((size, len(action)))
        for _ in range(self.frames):
            mujoco.mjd_transitionFD(self.model, data, DIFFERENCE, True, A, B, None, None)
            mujoco.mj_step(self.model, data)
            by_state, by_action = A @ by_state, A @ by_action + B
        return np.concatenate([data.qpos, data.qvel]), by_state, by_action


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
