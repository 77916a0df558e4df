"""Returns of a frozen actor imagined to their end: whole rollouts of the world model, with nothing bootstrapped."""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dst_core.replay import Replay
from dst_core.world_model import StepModel

STATES = 4096
PER_STATE = 2  # the least that the unbiased estimator compares with
DISCOUNT_LEFT = 0.01  # what lies beyond a rollout weighs less than this


class ModelReturns(NamedTuple):
    """Independent returns from replayed states and actions."""

    observation: Tensor
    """(R, S)"""
    action: Tensor
    """(R, A)"""
    returns: Tensor
    """(R, 2) in units of reward"""


@torch.no_grad()
def model_returns(
    replay: Replay,
    *,
    most: int,
    batch: int,
    model: StepModel,
    actor: nn.Module,
    discount: float,
    generator: torch.Generator,
    interrupted: Callable[[], bool] = lambda: False,
    track: Callable[[int], Iterable[int]] = range,
) -> ModelReturns | None:
    """Follow the actor from replayed transitions through the world model, each until it ends or what follows weighs under 1 %.

        G = sum_k<H discount^k r_k,   s_k+1, r_k = g(s_k, a_k, eps_k),   a_0 replayed, then a_k = pi(s_k);   ends with probability p_end.

    An end is drawn, not averaged over: whether a robot falls is part of the law of its return. What goes on after H steps is taken to go on
    as it did: its return is divided by 1 - discount^H, as calibration does with episodes that a time limit cuts off.

    Args:
        replay: where rollouts start.
        most: starts worth having; at most 4096 are drawn.
        batch: transitions drawn at once.
        model: imagines the steps.
        actor: observation (R, S) to action (R, A).
        discount: per step.
        generator: source of all noise.
        interrupted: asked before every step.
        track: given the number of steps, counts them.

    Returns:
        None if interrupted.
    """
    draws = [replay.sample(batch, generator) for _ in range(math.ceil(min(most, STATES) / batch))]
    starts = torch.cat([draw.observation for draw in draws]), torch.cat([draw.action for draw in draws])
    state, action = (rows.repeat_interleave(PER_STATE, 0) for rows in starts)
    total = torch.zeros(len(state), device=state.device)
    weight = torch.ones_like(total)
    horizon = math.ceil(math.log(DISCOUNT_LEFT) / math.log(discount))
    for _ in track(horizon):
        if interrupted():
            return None
        draw = model.sample(state, action, generator)
        total += weight * draw.reward
        goes_on = torch.rand(weight.shape, generator=generator, device=weight.device) >= draw.termination
        weight = weight * discount * goes_on
        state = draw.next_observation
        action = actor(state)
    total = torch.where(weight > 0, total / (1 - discount**horizon), total)
    return ModelReturns(*starts, total.view(-1, PER_STATE))
