"""The DST agent: its parts, and the order in which one update moves them."""

import torch
from torch import Tensor, nn

from dst_core.actor import Actor, objective
from dst_core.agent_config import AgentConfig
from dst_core.critic import GenerativeCritic
from dst_core.critic_learner import CriticLearner
from dst_core.networks import ActionScale, Standardiser, descend, polyak, target_of
from dst_core.world_model import Transition
from dst_core.world_models.conditional_vae import ConditionalVae

CRITICS = 2


class Agent(nn.Module):
    """World model, critics and deterministic actor, learned from replay in the manner of Dyna."""

    def __init__(self, config: AgentConfig, *, action_low: Tensor, action_high: Tensor, observation_size: int) -> None:
        super().__init__()
        self.observation = Standardiser(observation_size)
        self.action = ActionScale(action_low, action_high)
        self.actor = Actor(observation=self.observation, action=self.action, hidden=config.hidden)
        self.target_actor = target_of(self.actor)
        self.model = ConditionalVae(
            observation=self.observation, action=self.action, hidden=config.hidden, latent=config.latent
        )
        critic = GenerativeCritic(
            observation=self.observation,
            action=self.action,
            hidden=config.hidden,
            noise_size=config.noise_size,
            members=CRITICS,
        )
        self.critics = CriticLearner(
            critic,
            discount=config.discount,
            samples=config.samples,
            truncate=config.truncate,
            blocks=config.blocks,
            distance=config.distance,
            bandwidth=config.bandwidth,
            gradient_weight=config.gradient_weight,
            polyak=config.polyak,
            learning_rate=config.learning_rate,
            max_gradient_norm=config.max_gradient_norm,
        )
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=config.learning_rate, fused=True)
        self.model_optimiser = torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True)
        self.config = config
        self.updates = 0

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """Deterministic action, (A,) for (S,), in the user's units."""
        action: Tensor = self.actor(observation)
        return action

    def observe(self, transition: Transition) -> None:
        """Take a real transition into the scales of the networks."""
        self.observation.update(transition.observation)
        self.model.observe(transition)

    def update(self, transition: Transition, generator: torch.Generator) -> dict[str, Tensor]:
        """One update of world model and critics, every `actor_delay`-th also of the actor.

        Returns:
            Scalars for the log. A non-finite one is for the caller to stop at.
        """
        self.updates += 1
        info = self.update_model(transition, generator)
        info |= self.critics.step(transition, model=self.model, actor=self.target_actor, generator=generator)
        if self.updates % self.config.actor_delay == 0:
            info |= self.update_actor(transition, generator)
            polyak(self.target_actor, self.actor, self.config.polyak)
        return info

    def update_model(self, transition: Transition, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the world model on real transitions; returns its losses."""
        losses = self.model.losses(transition, generator)
        descend(
            self.model_optimiser,
            torch.stack(list(losses.values())).sum(),
            max_gradient_norm=self.config.max_gradient_norm,
        )
        return {name: loss.detach() for name, loss in losses.items()}

    def update_actor(self, transition: Transition, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the actor up the critics' samples; returns its objective."""
        critic = self.critics.critic
        noise = critic.draw_noise(len(transition.observation), self.config.samples, generator)
        returns = critic(transition.observation, self.actor(transition.observation), noise)
        value = objective(returns, risk=self.config.risk, risk_level=self.config.risk_level).mean()
        descend(self.actor_optimiser, -value / critic.return_scale, max_gradient_norm=self.config.max_gradient_norm)
        return {"actor_objective": value.detach()}
