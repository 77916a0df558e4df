"""The generative critic learned from return samples alone: no gradients of the return, no world model.

The target samples of one real transition share its successor s'. That is consistent: the squared MMD is quadratic in the embedding of
the target's law and its only term with both laws is linear in it, so the average over successors of the squared MMD to the law given
s' has the same gradient as the squared MMD to the mixture of these laws. Truncation is the exception: it drops the largest returns
given s', not those of the mixture (so it does in TQC).
"""

import torch
from torch import Tensor

from dst_core.actor import Actor
from dst_core.baselines.replay_learner import ReplayLearner, pooled
from dst_core.critic import GenerativeCritic
from dst_core.mmd import Estimator, Kernel, mmd2
from dst_core.sobolev_loss import JointScale
from dst_core.targets import truncate
from dst_core.world_model import Transition


class MmdLearner(ReplayLearner[GenerativeCritic]):
    """Generative critics towards the target critics' pooled samples without the largest, by squared MMD of the return."""

    def __init__(
        self,
        critic: GenerativeCritic,
        *,
        samples: int,
        truncate: float,
        kernel: Kernel,
        bandwidth: float,
        estimator: Estimator,
        discount: float,
        polyak: float,
        learning_rate: float,
        max_gradient_norm: float,
    ) -> None:
        super().__init__(
            critic,
            discount=discount,
            polyak=polyak,
            learning_rate=learning_rate,
            max_gradient_norm=max_gradient_norm,
        )
        self.scale = JointScale(1).to(critic.return_scale.device)
        self.samples = samples
        self.truncate = truncate
        self.kernel: Kernel = kernel
        self.bandwidth = bandwidth
        self.estimator: Estimator = estimator

    def returns(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Samples of the return, (E, B, N) in units of reward."""
        samples: Tensor = self.critic(
            observation, action, self.critic.draw_noise(len(observation), self.samples, generator)
        )
        return samples

    def loss(self, transition: Transition, *, actor: Actor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Squared MMD averaged over the batch and summed over the critics, (), and the kept target (B, K)."""
        batch = len(transition.reward)
        with torch.no_grad():
            following = transition.next_observation
            noise = self.critic.draw_noise(batch, self.samples, generator)
            future = pooled(self.target_critic(following, actor(following), noise))
            target = truncate(self.bootstrapped(transition, future).unsqueeze(-1), self.truncate)
        self.scale.update(target)
        predicted = self.returns(transition.observation, transition.action, generator).unsqueeze(-1)
        distance = mmd2(
            predicted / self.scale.std,
            target / self.scale.std,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            estimator=self.estimator,
        )
        return distance.mean(-1).sum(), target.squeeze(-1)
