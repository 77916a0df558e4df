"""Does the critic promise what the policy earns? Its bias on the states of evaluation episodes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dst_core.evaluate import Trajectory

MOST_BOOTSTRAPPED = 0.2
ROWS_AT_ONCE = 1024

Returns = Callable[[Tensor, Tensor, torch.Generator], Tensor]


class CriticBias(NamedTuple):
    """Monte-Carlo return less predicted mean, in units of reward; positive where the critic is pessimistic."""

    mean: float
    std: float
    """Over the states."""


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
    differences = []
    for trajectory in trajectories:
        predicted = _means(trajectory, returns, generator)
        steps = len(trajectory.rewards)
        ahead = 0.0 if trajectory.terminated else float(predicted[steps])
        counted = torch.empty(steps, dtype=torch.float64)
        for step in reversed(range(steps)):
            ahead = trajectory.rewards[step] + discount * ahead
            counted[step] = ahead - predicted[step]
        left = torch.arange(steps, 0, -1, dtype=torch.float64)
        complete = torch.full((steps,), trajectory.terminated) | (discount**left <= MOST_BOOTSTRAPPED)
        differences.append(counted[complete])
    bias = torch.cat(differences)
    if not len(bias):
        return None
    return CriticBias(mean=float(bias.mean()), std=float(bias.std(correction=0)))


@torch.no_grad()
def _means(trajectory: Trajectory, returns: Returns, generator: torch.Generator) -> Tensor:
    """E Z(s_t, a_t) for every observation of an episode, the last one included, (T + 1,)."""
    observations, actions = (
        torch.split(torch.from_numpy(rows).to(generator.device), ROWS_AT_ONCE)
        for rows in (trajectory.observations, trajectory.actions)
    )
    pairs = zip(observations, actions, strict=True)
    means = [returns(observation, action, generator).mean((0, 2)) for observation, action in pairs]
    return torch.cat(means).double().cpu()
