"""TD3: twin Q functions and a smoothed target policy (Fujimoto, van Hoof and Meger, ICML 2018)."""

import torch
from torch import Tensor

from dst_core.actor import Actor
from dst_core.baselines.q_network import QNetwork
from dst_core.baselines.replay_learner import ReplayLearner
from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import Transition

SMOOTHING_STD, SMOOTHING_CLIP = 0.2, 0.5  # of the target action's noise, in half action ranges


class Td3Learner(ReplayLearner[QNetwork]):
    """Twin Q functions towards the lesser of their targets, on real transitions, by squared error.

    The target twins follow at every step, as all target critics of this harness; in the paper every second one, with the target actor.
    """

    def __init__(
        self,
        *,
        observation: Standardiser,
        action: ActionScale,
        hidden: int,
        discount: float,
        polyak: float,
        learning_rate: float,
        max_gradient_norm: float,
    ) -> None:
        super().__init__(
            QNetwork(observation=observation, action=action, hidden=hidden, members=2, outputs=1),
            discount=discount,
            polyak=polyak,
            learning_rate=learning_rate,
            max_gradient_norm=max_gradient_norm,
        )

    def returns(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """The first Q function alone, (1, B, 1) in units of reward."""
        del generator
        values: Tensor = self.critic(observation, action)[:1]
        return values

    def loss(self, transition: Transition, *, actor: Actor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Squared error averaged over the batch and summed over the twins, (), and the target (B, 1); arguments as `step`."""
        with torch.no_grad():
            future = self.lesser_target(transition.next_observation, actor=actor, generator=generator)
            target = self.bootstrapped(transition, future)
        error = (target - self.critic(transition.observation, transition.action)) / self.critic.return_scale
        return error.square().mean(1).sum(), target

    def lesser_target(self, observation: Tensor, *, actor: Actor, generator: torch.Generator) -> Tensor:
        """The lesser of the target twins at the target action with clipped noise, (B, 1) for (B, S), differentiable."""
        unit = self.critic.action.to_unit(actor(observation))
        noise = torch.randn(unit.shape, generator=generator, device=unit.device, dtype=unit.dtype)
        smoothed = (unit + (SMOOTHING_STD * noise).clamp(-SMOOTHING_CLIP, SMOOTHING_CLIP)).clamp(-1, 1)
        twins: Tensor = self.target_critic(observation, self.critic.action.from_unit(smoothed))
        return twins.amin(0)
