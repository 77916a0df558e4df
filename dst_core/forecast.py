"""The law that is served: an evaluation critic fitted to the finished actor.

The critics that train the actor are pessimistic by design (truncation) and have followed a moving actor. The evaluation critic starts from
them, keeps the actor frozen, drops nothing, and lets its step size fall to zero, so that its samples settle on the law of the return.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch

from dst_core.actor import Actor
from dst_core.config import AgentConfig
from dst_core.critic import GenerativeCritic
from dst_core.critic_learner import CriticLearner
from dst_core.world_model import StepModel, Transition

POLYAK = 0.03
LEARNING_RATE = 3e-3
LAST_LEARNING_RATE_SHARE = 0.01


def fit_forecast(
    start: GenerativeCritic,
    *,
    config: AgentConfig,
    updates: int,
    sample: Callable[[], Transition],
    model: StepModel,
    actor: Actor,
    generator: torch.Generator,
) -> Iterator[CriticLearner]:
    """Fit a copy of `start` to the law of the return of `actor`, without truncation.

    Args:
        start: critics to begin from; left as they are.
        config: samples, distance, blocks and discount; its truncation, Polyak rate and step size do not apply.
        updates: steps of the fit; each lets one Polyak-averaged backup of rate 0.03 happen.
        sample: gives a batch of transitions.
        model: imagines the step.
        actor: frozen.
        generator: source of all noise.

    Yields:
        The learner after every update, so that a caller can show progress; its `target_critic`, the Polyak average, is the result.
    """
    learner = CriticLearner(
        deepcopy(start).requires_grad_(),
        discount=config.discount,
        samples=config.samples,
        truncate=0.0,
        blocks=config.blocks,
        distance=config.distance,
        bandwidth=config.bandwidth,
        gradient_weight=config.gradient_weight,
        polyak=POLYAK,
        learning_rate=LEARNING_RATE,
        max_gradient_norm=config.max_gradient_norm,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(
        learner.optimiser, start_factor=1.0, end_factor=LAST_LEARNING_RATE_SHARE, total_iters=updates
    )
    for _ in range(updates):
        learner.step(sample(), model=model, actor=actor, generator=generator)
        schedule.step()
        yield learner
