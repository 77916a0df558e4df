"""How well a world model predicts transitions that it was not trained on."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dst_core.evaluate import Trajectory
from dst_core.world_model import LearnedModel, StepFunction, Transition

DRAWS = 16
MOST_ROWS = 1024
MOST_GRADIENT_ROWS = 64


def held_out(trajectories: Sequence[Trajectory], device: torch.device) -> Transition:
    """The transitions of evaluation episodes, at most 1024 of them, evenly spaced."""
    steps = [len(trajectory.rewards) for trajectory in trajectories]
    ends = [float(trajectory.terminated) for trajectory in trajectories]
    rows = (
        np.concatenate([trajectory.observations[:-1] for trajectory in trajectories]),
        np.concatenate([trajectory.actions[:-1] for trajectory in trajectories]),
        np.concatenate([trajectory.rewards for trajectory in trajectories]),
        np.concatenate([trajectory.observations[1:] for trajectory in trajectories]),
        np.concatenate([[0.0] * (count - 1) + [end] for count, end in zip(steps, ends, strict=True)]),
    )
    whole = Transition(*(torch.as_tensor(row, dtype=torch.float32, device=device) for row in rows))
    return _spaced(whole, MOST_ROWS)


def model_quality(
    model: LearnedModel, transition: Transition, *, generator: torch.Generator, truth: StepFunction | None = None
) -> dict[str, float]:
    """Log-likelihood and errors on real transitions.

    Args:
        model: to be judged; its predicted mean is that of 16 draws, which adds a sixteenth of its own variance to squared errors.
        transition: held out from training, B rows.
        generator: source of the model's noise; on the model's device.
        truth: the task's own step without noise, where it is known.

    Returns:
        `model_log_likelihood`: of (s', r) given (s, a), nats per transition, mean over the rows.
        `model_observation_error`: root mean squared error of the predicted mean of s', every component in standard deviations of its
            observed change s' - s: near 1 the model knows no more than the mean change. Components that never change do not count.
        `model_reward_error`: root mean squared error of the predicted mean of r, in units of reward.
        `model_gradient_error`: with `truth`, Frobenius norm of the error of the mean Jacobian ds'/da over that of the truth's, over at most
            64 rows: 0 is exact, 1 is as good as no gradient at all.
    """
    with torch.no_grad():
        log_likelihood = model.log_likelihood(transition, generator).mean()
        draw = model.sample(*_repeated(transition, DRAWS), generator)
    predicted = draw.next_observation.view(DRAWS, len(transition.reward), -1).mean(0)
    reward = draw.reward.view(DRAWS, -1).mean(0)
    squared_error = (predicted - transition.next_observation).square().mean(0)
    variance = (transition.next_observation - transition.observation).var(0, correction=0)
    changes = variance > 0
    quality = {
        "model_log_likelihood": float(log_likelihood),
        "model_observation_error": float((squared_error / variance)[changes].mean().sqrt()),
        "model_reward_error": float((reward - transition.reward).square().mean().sqrt()),
    }
    if truth is not None:
        rows = _spaced(transition, MOST_GRADIENT_ROWS)
        true_jacobian = action_jacobian(truth, rows.observation, rows.action)
        error = mean_jacobian(model, rows, generator) - true_jacobian
        quality["model_gradient_error"] = float(error.norm() / true_jacobian.norm())
    return quality


def mean_jacobian(model: LearnedModel, transition: Transition, generator: torch.Generator) -> Tensor:
    """Mean over 16 draws of the next observation's derivative by the action, (B, S, A)."""

    def drawn(observation: Tensor, action: Tensor) -> Tensor:
        return model.sample(observation, action, generator).next_observation

    each = action_jacobian(drawn, *_repeated(transition, DRAWS))
    return each.view(DRAWS, len(transition.reward), *each.shape[1:]).mean(0)


def action_jacobian(step: StepFunction, observation: Tensor, action: Tensor) -> Tensor:
    """Derivative of the next observation by the action, (R, S, A) for (R, S) and (R, A)."""
    action = action.clone().requires_grad_()
    with torch.enable_grad():
        following = step(observation, action)
        rows = [
            torch.autograd.grad(component.sum(), action, retain_graph=True)[0] for component in following.unbind(-1)
        ]
    return torch.stack(rows, -2)


def _repeated(transition: Transition, times: int) -> tuple[Tensor, Tensor]:
    return transition.observation.repeat(times, 1), transition.action.repeat(times, 1)


def _spaced(transition: Transition, most: int) -> Transition:
    rows = len(transition.reward)
    index = torch.linspace(0, rows - 1, min(rows, most), device=transition.reward.device).round().long()
    return Transition(*(column[index] for column in transition))
