"""The law that is served: an evaluation critic fitted to the finished actor.

The critics that train the actor are pessimistic by design (truncation) and have followed a moving actor. The evaluation
critic starts from them, keeps the actor frozen, drops nothing, and lets its step size fall to zero, so that its samples
settle on the law of the return.

What is left of the start's bias after n updates is about exp(-rate (1 - discount) n), so the Polyak rate follows from
the number of updates: five time constants leave less than one per cent.
"""

from copy import deepcopy

import torch

from dst_core.actor import Actor
from dst_core.agent_config import AgentConfig
from dst_core.critic import GenerativeCritic
from dst_core.critic_learner import CriticLearner
from dst_core.execution import EAGER, Execution
from dst_core.world_model import StepModel, Transition

TIME_CONSTANTS = 5.0
LEAST_POLYAK = 0.03  # a slower average brings nothing once the step size falls
LEARNING_RATE = 1e-2  # at 3e-3 the critic lags behind its target: 88 where the return is 100, against 100
LAST_LEARNING_RATE_SHARE = 0.01


class Forecast:
    """A copy of the critics on its way to the law of the return of a frozen actor.

    Args:
        start: critics to begin from; left as they are.
        config: samples, distance, blocks and discount; its truncation, Polyak rate and step size do not apply.
        updates: number of steps to come, over which the step size falls.
        execution: how they are computed.
    """

    def __init__(
        self, start: GenerativeCritic, *, config: AgentConfig, updates: int, execution: Execution = EAGER
    ) -> None:
        self._learner = CriticLearner(
            deepcopy(start).requires_grad_(),
            discount=config.discount,
            samples=config.samples,
            truncate=0.0,
            blocks=config.blocks,
            distance=config.distance,
            kernel=config.kernel,
            bandwidth=config.bandwidth,
            estimator="unbiased",
            gradient_weight=config.gradient_weight,
            polyak=min(max(TIME_CONSTANTS / ((1 - config.discount) * updates), LEAST_POLYAK), 1.0),
            learning_rate=LEARNING_RATE,
            max_gradient_norm=config.max_gradient_norm,
        )
        self._learner.prepare(execution)
        self._schedule = torch.optim.lr_scheduler.LinearLR(
            self._learner.optimiser, start_factor=1.0, end_factor=LAST_LEARNING_RATE_SHARE, total_iters=updates
        )

    @property
    def critic(self) -> GenerativeCritic:
        """The Polyak average, which is smoother than the last step."""
        return self._learner.target_critic

    def step(self, transition: Transition, *, model: StepModel, actor: Actor, generator: torch.Generator) -> None:
        """One step towards the law; arguments as `CriticLearner.step`."""
        self._learner.step(transition, model=model, actor=actor, generator=generator)
        self._schedule.step()
