"""TQC: truncated mixture of quantile critics (Kuznetsov et al., ICML 2020)."""

import torch
from torch import Tensor

from dst_core.actor import Actor
from dst_core.baselines.q_network import QNetwork
from dst_core.baselines.quantile_regression import quantile_huber_loss
from dst_core.baselines.replay_learner import ReplayLearner, pooled
from dst_core.networks import ActionScale, Standardiser
from dst_core.targets import truncate
from dst_core.world_model import Transition


class TqcLearner(ReplayLearner[QNetwork]):
    """E critics of N fixed quantiles each, towards their pooled target quantiles without the largest.

    The paper builds on SAC, whose actor is random and whose target holds an entropy bonus. Here the actor is the deterministic one
    that all methods of this harness share, without bonus and without target smoothing, so that critics alone are compared.
    """

    fractions: Tensor

    def __init__(
        self,
        *,
        observation: Standardiser,
        action: ActionScale,
        hidden: int,
        members: int,
        quantiles: int,
        truncate: float,
        discount: float,
        polyak: float,
        learning_rate: float,
        max_gradient_norm: float,
    ) -> None:
        super().__init__(
            QNetwork(observation=observation, action=action, hidden=hidden, members=members, outputs=quantiles),
            discount=discount,
            polyak=polyak,
            learning_rate=learning_rate,
            max_gradient_norm=max_gradient_norm,
        )
        self.truncate = truncate
        self.register_buffer("fractions", (torch.arange(quantiles) + 0.5) / quantiles, persistent=False)

    def returns(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """All quantiles, (E, B, N) in units of reward."""
        del generator
        quantiles: Tensor = self.critic(observation, action)
        return quantiles

    def loss(self, transition: Transition, *, actor: Actor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Quantile Huber loss averaged over the batch and summed over the critics, (), and the kept target (B, K)."""
        del generator
        with torch.no_grad():
            following = transition.next_observation
            future = pooled(self.target_critic(following, actor(following)))
            target = truncate(self.bootstrapped(transition, future).unsqueeze(-1), self.truncate).squeeze(-1)
        scale = self.critic.return_scale
        predicted = self.critic(transition.observation, transition.action) / scale
        return quantile_huber_loss(predicted, self.fractions, target / scale).mean(1).sum(), target
