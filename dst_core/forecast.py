"""The law that is served: an evaluation critic fitted to the finished actor.

The critics that train the actor are pessimistic by design (truncation) and have followed a moving actor. The evaluation
critic begins afresh and owes them nothing: it sees one actor, drops nothing, compares without bias, and lets its step size fall to
zero, so that its samples settle on the law of the return.

Bootstrapping alone does not get there. What a backup gets wrong returns in all later ones and adds up to 1 / (1 - discount) times as
much, and a fresh critic is at first wrong by the whole return. So two things are fitted at once: the joint law of return and gradients
to one backup of it, as in training, and the return alone to returns that the world model imagines to their end. The second holds the
level and the spread, the first gives the gradients their law. Its steps are imagined, several per transition: the model has settled on all
data, and a law that only one replayed step of each transition shows is learned with more noise.
"""

import torch

from dst_core.actor import Actor
from dst_core.agent_config import AgentConfig
from dst_core.critic import GenerativeCritic
from dst_core.critic_learner import CriticLearner
from dst_core.execution import EAGER, Execution
from dst_core.model_returns import ModelReturns
from dst_core.networks import descend, polyak, settling
from dst_core.sobolev_loss import sobolev_loss
from dst_core.world_model import StepModel, Transition

POLYAK = 0.1
LEARNING_RATE = 1e-2


class Forecast:
    """A fresh critic on its way to the law of the return of a frozen actor.

    Args:
        critic: fresh; it is moved.
        imagined: returns of the actor from the world model.
        config: samples, distance, blocks and discount; its steps, truncation, estimator, Polyak rate and step size do not apply.
        updates: number of steps to come, over which the step size falls.
        execution: how they are computed.
    """

    def __init__(
        self,
        critic: GenerativeCritic,
        imagined: ModelReturns,
        *,
        config: AgentConfig,
        updates: int,
        execution: Execution = EAGER,
    ) -> None:
        self._imagined = imagined
        self._execution = execution
        self._learner = CriticLearner(
            critic,
            discount=config.discount,
            samples=config.samples,
            target_steps="imagined",
            target_law="pooled",
            truncate=0.0,
            blocks=config.blocks,
            distance=config.distance,
            kernel=config.kernel,
            bandwidth=config.bandwidth,
            estimator="unbiased",
            gradient_weight=config.gradient_weight,
            polyak=POLYAK,
            learning_rate=LEARNING_RATE,
            max_gradient_norm=config.max_gradient_norm,
        )
        self._learner.prepare(execution)
        self._schedule = settling(self._learner.optimiser, updates)

    @property
    def critic(self) -> GenerativeCritic:
        """The Polyak average, which is smoother than the last step."""
        return self._learner.target_critic

    def step(self, transition: Transition, *, model: StepModel, actor: Actor, generator: torch.Generator) -> None:
        """One step towards the law; arguments as `CriticLearner.step`."""
        self._execution.begin_update()
        learner = self._learner
        noise = learner.draw_noise(transition, generator)
        target = learner.target(transition, noise, model=model, actor=actor, generator=generator)
        learner.scale.update(target.joint)
        loss = learner.loss(transition, target, noise) + self._distance_to_imagined(len(transition.reward), generator)
        descend(learner.optimiser, loss, max_gradient_norm=learner.max_gradient_norm)
        polyak(learner.target_critic, learner.critic, learner.polyak)
        self._schedule.step()

    def _distance_to_imagined(self, batch: int, generator: torch.Generator) -> torch.Tensor:
        """Distance of the critics' returns to imagined ones, () in the units of `CriticLearner.loss`."""
        learner, (observation, action, returns) = self._learner, self._imagined
        rows = torch.randint(len(returns), (batch,), generator=generator, device=returns.device)
        predicted = learner.returns(observation[rows], action[rows], generator)
        return sobolev_loss(
            predicted.unsqueeze(-1),
            returns[rows].unsqueeze(-1),
            std=learner.scale.std[:1],
            gradient_weight=learner.gradient_weight,
            distance="mmd",
            kernel=learner.kernel,
            bandwidth=learner.bandwidth,
        )
