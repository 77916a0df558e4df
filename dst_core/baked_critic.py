"""The generative critic with its noise baked in, arranged for few operations on one row: what an answer costs is mostly their number.

Scales are folded into weights. The first layer of all critics is one product. Behind it each critic has two-dimensional weights of its own,
which ONNX Runtime packs once, and the value and all tangents along the action go through its second layer as rows of one product.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dst_core.critic import GenerativeCritic, InputNoiseCritic


class BakedSamples(NamedTuple):
    """Joint samples, critic after critic."""

    returns: Tensor
    """(B, N) in units of reward."""
    action_gradient: Tensor
    """(B, A, N) in reward per action unit."""
    observation_gradient_mean: Tensor
    """(B, S) in reward per observation unit."""


class _Member(nn.Module, ABC):
    """One critic behind its first layer.

    What is summed for each row of the batch is a product of its own, so that its rounding does not hang on the rows beside it.
    """

    by_observation: Tensor
    by_action: Tensor
    second: Tensor
    second_bias: Tensor
    head: Tensor
    noise: Tensor
    average: Tensor

    def __init__(self, critic: GenerativeCritic, noise: Tensor, member: int) -> None:
        super().__init__()
        by_observation, by_action = critic.trunk_in.weight[member].tensor_split([critic.observation_size])
        buffers = {
            "by_observation": by_observation / critic.observation.std.unsqueeze(1),
            "by_action": by_action / critic.action.half_range.unsqueeze(1),
            "second": critic.trunk_out.weight[member],
            "second_bias": critic.trunk_out.bias[member, 0],
            "head": critic.head.weight[member, :, 0] * critic.return_scale,
            "noise": noise[member, 0] @ critic.noise_in[member],
            "average": torch.full((1, noise.shape[2]), 1 / noise.shape[2]),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value.detach().clone())

    @abstractmethod
    def forward(self, rows: Tensor, slope: Tensor) -> BakedSamples:
        """Its samples, less the offset of the head, from rows for its second layer (B, R, H) and the first one's slope (B, R or 1, H)."""


class _LayerTwoNoise(_Member):
    """Rows are the value and the tangents along the action; the noise is added to the value behind them."""

    def __init__(self, critic: GenerativeCritic, noise: Tensor, member: int) -> None:
        super().__init__(critic, noise, member)
        self.noise += self.second_bias

    def forward(self, rows: Tensor, slope: Tensor) -> BakedSamples:
        """See `_Member`."""
        value, tangents = (rows @ self.second).tensor_split([1], 1)
        activated, second_slope = _silu(value + self.noise)
        cotangent = (self.average @ second_slope * self.head) @ self.second.mT * slope
        return BakedSamples(
            returns=self.head.unsqueeze(0) @ activated.mT,
            action_gradient=(tangents * self.head) @ second_slope.mT,
            observation_gradient_mean=(cotangent @ self.by_observation.mT).squeeze(1),
        )


class _InputNoise(_Member):
    """Rows are samples, and gradients go backward."""

    def forward(self, rows: Tensor, slope: Tensor) -> BakedSamples:
        """See `_Member`."""
        activated, second_slope = _silu(rows @ self.second + self.second_bias)
        cotangent = (second_slope * self.head) @ self.second.mT * slope
        return BakedSamples(
            returns=self.head.unsqueeze(0) @ activated.mT,
            action_gradient=self.by_action @ cotangent.mT,
            observation_gradient_mean=(self.average @ cotangent @ self.by_observation.mT).squeeze(1),
        )


class BakedCritic(nn.Module):
    """The joint samples of all critics at fixed noise.

    Args:
        critic: whose samples.
        noise: (E, 1, n, noise)
    """

    first: Tensor
    first_bias: Tensor
    into: Tensor
    offset: Tensor

    def __init__(self, critic: GenerativeCritic, noise: Tensor) -> None:
        super().__init__()
        self.noise_at_input = isinstance(critic, InputNoiseCritic)
        kind = _InputNoise if self.noise_at_input else _LayerTwoNoise
        members = [kind(critic, noise, member) for member in range(critic.members)]
        offset = (critic.head.bias.view(-1, 1) * critic.return_scale).expand(-1, noise.shape[2])
        into = [member.noise if self.noise_at_input else member.by_action for member in members]
        self.members = nn.ModuleList(members)
        self.register_buffer("first", torch.cat(critic.trunk_in.weight.unbind(), 1).detach())
        self.register_buffer("first_bias", torch.cat(critic.trunk_in.bias.unbind(), 1)[0].detach())
        self.register_buffer("into", torch.cat(into, 1))
        self.register_buffer("offset", offset.flatten().detach().clone())

    def forward(self, standardised: Tensor, unit: Tensor) -> BakedSamples:
        """The samples at standardised observations (B, S) and actions in [-1, 1], (B, A)."""
        first = torch.addmm(self.first_bias, torch.cat([standardised, unit], 1), self.first).unsqueeze(1)
        if self.noise_at_input:
            rows, slope = _silu(first + self.into)
        else:
            value, slope = _silu(first)
            rows = torch.cat([value, slope * self.into], 1)
        own = zip(self.members, *(part.chunk(len(self.members), 2) for part in (rows, slope)), strict=True)
        returns, by_action, by_observation = zip(*(member(*parts) for member, *parts in own), strict=True)
        return BakedSamples(
            returns=torch.cat(returns, 2).squeeze(1) + self.offset,
            action_gradient=torch.cat(by_action, 2),
            observation_gradient_mean=torch.stack(by_observation).mean(0),
        )


def _silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `dst_core.networks.silu`, in one operation less."""
    gate = torch.sigmoid(x)
    value = x * gate
    return value, gate + value * (1 - gate)
