"""What the baselines share: critic, target critic, optimiser, and a step of temporal-difference learning on real transitions."""

from abc import abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from dst_core.actor import Actor
from dst_core.networks import descend, polyak, target_of
from dst_core.world_model import StepModel, Transition

C = TypeVar("C", bound=nn.Module)


class ReplayLearner(nn.Module, Generic[C]):
    """A critic learned from replayed transitions without a world model; a method says what its loss is."""

    uses_model: ClassVar[bool] = False

    def __init__(
        self, critic: C, *, discount: float, polyak: float, learning_rate: float, max_gradient_norm: float
    ) -> None:
        super().__init__()
        self.critic = critic
        self.target_critic = target_of(critic)
        self.optimiser = torch.optim.Adam(critic.parameters(), lr=learning_rate, fused=True)
        self.discount = discount
        self.polyak = polyak
        self.max_gradient_norm = max_gradient_norm

    @abstractmethod
    def returns(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """What the actor climbs at observation (B, S) and action (B, A): (E, B, N) in units of reward, differentiable in the action."""

    @abstractmethod
    def loss(self, transition: Transition, *, actor: Actor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Loss in standardised units, (), and the target it is taken to, detached, (B, K) in units of reward."""

    def step(
        self, transition: Transition, *, model: StepModel | None, actor: Actor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Move the critics one step towards their target.

        Args:
            transition: replayed, B rows; reward and successor are taken as they were.
            model: not used by methods that learn from real transitions.
            actor: the target actor.
            generator: source of all noise.

        Returns:
            Scalars: `critic_loss` in standardised units, `target_mean` and `target_std` of the return in units of reward.
        """
        del model
        return self.move(*self.loss(transition, actor=actor, generator=generator))

    def move(self, loss: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Descend the loss and let the target critic follow; arguments as `loss` gives them, scalars as of `step`."""
        descend(self.optimiser, loss, max_gradient_norm=self.max_gradient_norm)
        polyak(self.target_critic, self.critic, self.polyak)
        return {
            "critic_loss": loss.detach(),
            "target_mean": target.mean(),
            "target_std": target.std(1, correction=0).mean(),
        }

    def bootstrapped(self, transition: Transition, future: Tensor) -> Tensor:
        """Targets r + discount (1 - terminated) future, (B, K), of futures (B, K); a time limit does not stop the bootstrap."""
        remaining = self.discount * (1 - transition.terminated)
        return transition.reward.unsqueeze(-1) + remaining.unsqueeze(-1) * future


def pooled(samples: Tensor) -> Tensor:
    """Samples of E critics, (E, B, M), as one set for each row, (B, E * M)."""
    return samples.transpose(0, 1).flatten(1)
