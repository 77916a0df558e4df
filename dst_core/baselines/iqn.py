"""An implicit quantile critic Z(s, a, tau) (Dabney et al., "Implicit quantile networks", ICML 2018) for continuous actions."""

import torch
from torch import Tensor, nn

from dst_core.actor import Actor
from dst_core.baselines.quantile_regression import quantile_huber_loss
from dst_core.baselines.replay_learner import ReplayLearner, pooled
from dst_core.networks import ActionScale, EnsembleLinear, Standardiser
from dst_core.targets import truncate
from dst_core.world_model import Transition

COSINES = 64


class ImplicitQuantileCritic(nn.Module):
    """E critics that give the return's quantile at any fraction; a uniform fraction makes it a sample of the return.

    The embedding of the fraction, phi_j(tau) = act(sum_i cos(pi i tau) w_ij + b_j) (eq. 4), multiplies the first hidden layer.
    """

    return_scale: Tensor
    frequencies: Tensor

    def __init__(self, *, observation: Standardiser, action: ActionScale, hidden: int, members: int) -> None:
        super().__init__()
        self.observation = observation
        self.action = action
        self.members = members
        self.inner = EnsembleLinear(members, observation.mean.shape[0] + action.center.shape[0], hidden)
        self.embedding = EnsembleLinear(members, COSINES, hidden)
        self.outer = EnsembleLinear(members, hidden, hidden)
        self.head = EnsembleLinear(members, hidden, 1)
        self.register_buffer("frequencies", torch.pi * torch.arange(COSINES), persistent=False)
        self.register_buffer("return_scale", torch.ones(()))

    def draw_fractions(self, batch: int, samples: int, generator: torch.Generator) -> Tensor:
        """Uniform fractions, (E, B, N)."""
        scale = self.return_scale
        shape = (self.members, batch, samples)
        return torch.rand(shape, generator=generator, device=scale.device, dtype=scale.dtype)

    def forward(self, observation: Tensor, action: Tensor, fractions: Tensor) -> Tensor:
        """Quantiles, (E, B, N) in units of reward.

        Args:
            observation: (B, S).
            action: (B, A) in the user's units.
            fractions: (E, B, N), in [0, 1].
        """
        inputs = torch.cat([self.observation.standardise(observation), self.action.to_unit(action)], -1)
        state_action = nn.functional.silu(self.inner(inputs)).unsqueeze(2)
        cosines = torch.cos(self.frequencies * fractions.unsqueeze(-1)).flatten(1, 2)
        embedded = nn.functional.silu(self.embedding(cosines)).view(*fractions.shape, -1)
        second = nn.functional.silu(self.outer((state_action * embedded).flatten(1, 2)))
        quantiles: Tensor = self.return_scale * self.head(second).view(fractions.shape)
        return quantiles


class IqnLearner(ReplayLearner[ImplicitQuantileCritic]):
    """Implicit quantiles at random fractions towards the target critics' pooled samples without the largest."""

    def __init__(
        self,
        *,
        observation: Standardiser,
        action: ActionScale,
        hidden: int,
        members: int,
        samples: int,
        truncate: float,
        discount: float,
        polyak: float,
        learning_rate: float,
        max_gradient_norm: float,
    ) -> None:
        super().__init__(
            ImplicitQuantileCritic(observation=observation, action=action, hidden=hidden, members=members),
            discount=discount,
            polyak=polyak,
            learning_rate=learning_rate,
            max_gradient_norm=max_gradient_norm,
        )
        self.samples = samples
        self.truncate = truncate

    def returns(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Samples of the return, quantiles at uniform fractions, (E, B, N) in units of reward."""
        fractions = self.critic.draw_fractions(len(observation), self.samples, generator)
        samples: Tensor = self.critic(observation, action, fractions)
        return samples

    def loss(self, transition: Transition, *, actor: Actor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Quantile Huber loss averaged over the batch and summed over the critics, (), and the kept target (B, K)."""
        batch = len(transition.reward)
        with torch.no_grad():
            following = transition.next_observation
            drawn = self.critic.draw_fractions(batch, self.samples, generator)
            future = pooled(self.target_critic(following, actor(following), drawn))
            target = truncate(self.bootstrapped(transition, future).unsqueeze(-1), self.truncate).squeeze(-1)
        scale = self.critic.return_scale
        fractions = self.critic.draw_fractions(batch, self.samples, generator)
        predicted = self.critic(transition.observation, transition.action, fractions) / scale
        return quantile_huber_loss(predicted, fractions, target / scale).mean(1).sum(), target
