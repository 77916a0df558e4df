"""The generative critic Z(s, a, xi): one return sample per noise vector, its gradients as closed matrix products.

Two hidden layers, and two places where the noise may enter. At the second (method: "structure that pays")

    u   = W2 act(W1 [s; a] + b1) + b2          once per (s, a)
    z_i = w3 act(u + Wxi xi_i) + b3            once per sample

the trunk runs once per (s, a), and the input gradient of every sample is two matrix products behind it. At the input

    z_i = w3 act(W2 act(W1 [s; a] + Wxi xi_i + b1) + b2) + b3

everything runs once per sample: a larger class of laws at a higher price. E critics are one batched network.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dst_core.networks import ActionScale, EnsembleLinear, Standardiser, chain_product, silu

NoiseEntry = Literal["layer-2", "input"]


class JointSamples(NamedTuple):
    """Samples of the return with its own gradients; sample i of each belongs together."""

    returns: Tensor
    """(E, B, N) in units of reward."""
    action_gradient: Tensor
    """(E, B, N, A) in reward per action unit."""
    observation_gradient: Tensor
    """(E, B, N, S) in reward per observation unit."""


class GenerativeCritic(nn.Module, ABC):
    """E critics whose samples are reparameterised: differentiable in observation and action along fixed noise."""

    initial_noise: ClassVar[float]
    """Standard deviation of the noise where it enters, at first; a law slowly forgets whether it started too narrow or too wide."""
    return_scale: Tensor

    def __init__(
        self, *, observation: Standardiser, action: ActionScale, hidden: int, noise_size: int, members: int
    ) -> None:
        super().__init__()
        self.observation = observation
        self.action = action
        self.noise_size = noise_size
        self.members = members
        self.observation_size = observation.mean.shape[0]
        inputs = self.observation_size + action.center.shape[0]
        self.trunk_in = EnsembleLinear(members, inputs, hidden)
        self.trunk_out = EnsembleLinear(members, hidden, hidden)
        self.noise_in = nn.Parameter(torch.randn(members, noise_size, hidden) * self.initial_noise / noise_size**0.5)
        self.head = EnsembleLinear(members, hidden, 1)
        self.register_buffer("return_scale", torch.ones(()))

    def draw_noise(self, batch: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Fresh noise, (E, B, N, noise)."""
        device, dtype = self.noise_in.device, self.noise_in.dtype
        shape = (self.members, batch, samples, self.noise_size)
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    def forward(self, observation: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """Return samples alone; see `joint` for arguments.

        Returns:
            (E, B, N) in units of reward.
        """
        _, second = self._hidden(observation, action, noise)
        return self._returns(nn.functional.silu(second))

    def joint(self, observation: Tensor, action: Tensor, noise: Tensor) -> JointSamples:
        """Return samples and their gradients with respect to action and observation.

        Args:
            observation: (B, S), or (E, B, S) where each critic sees its own.
            action: (B, A) or (E, B, A), in the user's units.
            noise: (E, B or 1, N, noise); one row is shared by the whole batch.
        """
        columns = self.joint_columns(observation, action, noise, blocks=("state", "action"))
        returns, by_observation, by_action = columns.tensor_split([1, 1 + self.observation_size], -1)
        return JointSamples(returns=returns.squeeze(-1), action_gradient=by_action, observation_gradient=by_observation)

    def joint_columns(self, observation: Tensor, action: Tensor, noise: Tensor, *, blocks: Sequence[str]) -> Tensor:
        """The return and the gradients asked for, of "action" and "state", side by side: (E, B, N, 1 + D); arguments as `joint`."""
        first, second = self._hidden(observation, action, noise)
        activated, slope = silu(second)
        returns = self._returns(activated).unsqueeze(-1)
        if not blocks:
            return returns
        by_observation, by_action = self.trunk_in.weight.tensor_split([self.observation_size], 1)
        into = {
            "state": by_observation / self.observation.std.unsqueeze(-1),
            "action": by_action / self.action.half_range.unsqueeze(-1),
        }
        weights = [torch.cat([into[block] for block in blocks], 1), self.trunk_out.weight]
        gradient = chain_product(slope * self.head.weight.mT.unsqueeze(1), [silu(first)[1]], weights)
        return torch.cat([returns, self.return_scale * gradient], -1)

    @abstractmethod
    def _hidden(self, observation: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Pre-activations of the first, (E, B, N or 1, H), and second layer, (E, B, N, H)."""

    def _first_of_inputs(self, observation: Tensor, action: Tensor) -> Tensor:
        inputs = torch.cat([self.observation.standardise(observation), self.action.to_unit(action)], -1)
        first: Tensor = self.trunk_in(inputs)
        return first.unsqueeze(2)

    def _shift(self, noise: Tensor) -> Tensor:
        return (noise.flatten(1, 2) @ self.noise_in).view(*noise.shape[:3], -1)

    def _returns(self, activated: Tensor) -> Tensor:
        """In the precision of the parameters, also where matrix products are done in a lower one: returns are often far from zero."""
        weight, bias = self.head.weight, self.head.bias
        exact = (activated.to(weight.dtype) * weight.mT.unsqueeze(1)).sum(-1) + bias
        return self.return_scale * exact


class LayerTwoNoiseCritic(GenerativeCritic):
    """The noise enters at the second hidden layer."""

    initial_noise = 0.3

    def _hidden(self, observation: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        first = self._first_of_inputs(observation, action)
        trunk: Tensor = self.trunk_out(nn.functional.silu(first).flatten(1, 2))
        return first, trunk[:, :, None] + self._shift(noise)


class InputNoiseCritic(GenerativeCritic):
    """The noise enters beside observation and action; two layers damp it, and one that starts too small stays too narrow."""

    initial_noise = 1.0

    def _hidden(self, observation: Tensor, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        first = self._first_of_inputs(observation, action) + self._shift(noise)
        second: Tensor = self.trunk_out(nn.functional.silu(first).flatten(1, 2))
        return first, second.view_as(first)


CRITICS: dict[NoiseEntry, type[GenerativeCritic]] = {"layer-2": LayerTwoNoiseCritic, "input": InputNoiseCritic}
