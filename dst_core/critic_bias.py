"""Does the critic promise what the policy earns? Its bias and its interval on the states of evaluation episodes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dst_core.evaluate import Trajectory

MOST_BOOTSTRAPPED = 0.2
CENTRAL = (0.05, 0.95)
ROWS_AT_ONCE = 1024

Returns = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class CriticBias(NamedTuple):
    """Monte-Carlo return less predicted mean, in units of reward; positive where the critic is pessimistic."""

    mean: float
    std: float
    """Over the states."""
    coverage: float
    """Share of the states whose Monte-Carlo return lies within the central 90 % interval of the samples, 0 to 1."""


def critic_bias(
    trajectories: Sequence[Trajectory],
    *,
    returns: Returns,
    discount: float,
    generator: torch.Generator,
) -> CriticBias | None:
    """Bias of the critic over the visited states, as REDQ measures it (Chen et al., ICLR 2021).

        G_t = sum_k discount^k r_(t+k) (+ discount^(T-t) E Z(s_T, a_T) at a time limit),   bias = mean_t [ G_t - E Z(s_t, a_t) ].

    A terminated episode has all its rewards. What a time limit cuts off is replaced by the critic's own prediction, so only states count
    for which it weighs discount^(T-t) <= 0.2.

    Args:
        trajectories: evaluation episodes, without exploration noise.
        returns: of the critics, (E, B, N) samples for observations (B, S), actions (B, A) and a source of noise.
        discount: per step.
        generator: source of the critics' noise; its device is the critics'.

    Returns:
        None where no state counts.
    """
    differences, covered = [], []
    for trajectory in trajectories:
        predicted, low, high = _laws(trajectory, returns, generator)
        steps = len(trajectory.rewards)
        ahead = 0.0 if trajectory.terminated else float(predicted[steps])
        realised = torch.empty(steps, dtype=torch.float64)
        for step in reversed(range(steps)):
            ahead = trajectory.rewards[step] + discount * ahead
            realised[step] = ahead
        left = torch.arange(steps, 0, -1, dtype=torch.float64)
        complete = torch.full((steps,), trajectory.terminated) | (discount**left <= MOST_BOOTSTRAPPED)
        differences.append((realised - predicted[:-1])[complete])
        covered.append(((low[:-1] <= realised) & (realised <= high[:-1]))[complete])
    bias = torch.cat(differences)
    if not len(bias):
        return None
    return CriticBias(
        mean=float(bias.mean()), std=float(bias.std(correction=0)), coverage=float(torch.cat(covered).double().mean())
    )


@torch.no_grad()
def _laws(trajectory: Trajectory, returns: Returns, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """E Z(s_t, a_t) for every observation of an episode, the last one included, and the ends of its central interval, each (T + 1,)."""
    observations, actions = (
        torch.split(torch.from_numpy(rows).to(generator.device), ROWS_AT_ONCE)
        for rows in (trajectory.observations, trajectory.actions)
    )
    pairs = zip(observations, actions, strict=True)
    drawn = [returns(observation, action, generator).transpose(0, 1).flatten(1) for observation, action in pairs]
    samples = torch.cat(drawn).double().cpu()
    low, high = torch.quantile(samples, _positions(samples.shape[1]), dim=1)
    return samples.mean(1), low, high


def _positions(samples: int) -> Tensor:
    """Levels at which `torch.quantile` takes the k-th of n sorted samples as the quantile k / (n + 1).

    So many of further draws from the same law lie below it on average; the outermost samples stand for what lies beyond them.
    """
    levels = torch.tensor(CENTRAL, dtype=torch.float64)
    return ((levels * (samples + 1) - 1) / max(samples - 1, 1)).clamp(0, 1)
