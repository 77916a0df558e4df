"""The point mass as a known differentiable simulator, and the true joint law of its return and of that return's gradients.

The same dynamics as `sim_bridge.tasks.point_mass`, in torch.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dst_core.world_model import ModelDraw
from sim_bridge.tasks import TaskError
from sim_bridge.tasks.perturbations import Environment, PerturbationWrapper, task_name
from sim_bridge.tasks.point_mass import (
    ACTION_COST,
    CONTROL_PERIOD_S,
    MOTION_NOISE_M,
    WIDTH_M,
    PointMass,
    reward_locations,
)

NEGLIGIBLE = 1e-6


class PointMassSimulator(nn.Module):
    """The true `StepModel` of `PointMass{N}-v0` for actions within their limits, differentiable any number of times.

    It computes in the precision and on the device of the observations it is given.

    Args:
        locations: N of the task, at least 1.

    Raises:
        TaskError: if there is no location.
    """

    positions: Tensor
    worths: Tensor

    def __init__(self, *, locations: int) -> None:
        super().__init__()
        positions, worths = reward_locations(locations)
        self.register_buffer("positions", torch.tensor(positions))
        self.register_buffer("worths", torch.tensor(worths))

    @property
    def reward_range(self) -> tuple[Tensor, Tensor]:
        """Bounds: the dearest action far from all locations, and all bumps on top of each other for nothing."""
        return torch.full_like(self.worths[0], -2 * ACTION_COST), self.worths.sum()

    def step(self, observation: Tensor, action: Tensor, noise: Tensor) -> ModelDraw:
        """The next step along standard normal noise; rows (R, 2) each. It never terminates."""
        arrived = observation + CONTROL_PERIOD_S * action + MOTION_NOISE_M * noise
        squared_distance = (arrived.unsqueeze(-2) - self.positions.to(arrived)).square().sum(-1)
        bumps = torch.exp(-squared_distance / (2 * WIDTH_M**2))
        reward = (self.worths.to(arrived) * bumps).sum(-1) - ACTION_COST * action.square().sum(-1)
        return ModelDraw(next_observation=arrived, reward=reward, termination=torch.zeros_like(reward))

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        """Draw the next step for rows of observation (R, 2) [m] and action (R, 2) [m/s]."""
        noise = torch.randn(observation.shape, generator=generator, device=observation.device, dtype=observation.dtype)
        return self.step(observation, action, noise)


def simulator_of(env: Environment | None) -> PointMassSimulator:
    """The simulator of a point mass.

    Raises:
        TaskError: if the environment is no point mass, or perturbed: the simulator knows nothing of perturbations.
    """
    task = None if env is None else env.unwrapped
    if env is None or not isinstance(task, PointMass):
        raise TaskError(
            f"world model 'simulator' must have a task with a known simulator, PointMass{{1,2,4,8}}-v0, "
            f"got {None if env is None else task_name(env)!r}; choose a learned world model there"
        )
    while isinstance(env, PerturbationWrapper):
        if env.scale > 0:
            raise TaskError(
                f"world model 'simulator' must have the task without perturbations, got {env.name}={env.scale:g}; "
                "choose a learned world model there"
            )
        env = env.env
    return PointMassSimulator(locations=len(task.worths))


class JointSamples(NamedTuple):
    """Samples of the return together with its own gradients; row n of each belongs to one draw of all noise."""

    returns: Tensor
    """(B, N) [reward]"""
    action_gradients: Tensor
    """(B, N, 2) [reward per m/s]"""
    state_gradients: Tensor
    """(B, N, 2) [reward per m], at fixed first action"""


def true_joint_samples(
    observation: Tensor,
    action: Tensor,
    *,
    model: PointMassSimulator,
    actor: Callable[[Tensor], Tensor],
    discount: float,
    samples: int,
    generator: torch.Generator | None = None,
) -> JointSamples:
    """True samples of [Z; dZ/da; dZ/ds] (method, section 1), by reparameterised roll-outs without a time limit.

        Z = sum_t discount^t r_t,   a_0 = a,   a_t = actor(s_t) afterwards,

    followed until discount^t falls below 1e-6. Every sample has its own copy of (s, a), so one backward pass of the sum
    gives each sample's own gradients.

    Args:
        observation: (B, 2) [m].
        action: (B, 2) [m/s].
        model: the simulator.
        actor: differentiable policy, (R, 2) to (R, 2).
        discount: per step, in [0, 1).
        samples: N per row.
        generator: source of all noise; on the device of the observation.

    Returns:
        The samples, detached.

    Raises:
        ValueError: if the discount is outside [0, 1).
    """
    if not 0 <= discount < 1:
        raise ValueError(f"discount must lie in [0, 1) for the roll-out to end, got {discount}")
    horizon = math.ceil(math.log(NEGLIGIBLE) / math.log(discount)) if discount > 0 else 1
    copies = (len(observation), samples)
    state = observation[:, None].expand(*copies, -1).flatten(0, 1).detach().requires_grad_()
    first_action = action[:, None].expand(*copies, -1).flatten(0, 1).detach().requires_grad_()
    with torch.enable_grad():
        draw = model.sample(state, first_action, generator)
        total = draw.reward
        for t in range(1, horizon):
            draw = model.sample(draw.next_observation, actor(draw.next_observation), generator)
            total = total + discount**t * draw.reward
        by_action, by_state = torch.autograd.grad(total.sum(), (first_action, state))
    return JointSamples(
        returns=total.detach().view(copies),
        action_gradients=by_action.view(*copies, -1),
        state_gradients=by_state.view(*copies, -1),
    )
