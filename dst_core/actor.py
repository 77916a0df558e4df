"""The deterministic actor a = pi(s) and what it climbs: a functional of the sampled returns."""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from dst_core.networks import ActionScale, Standardiser, linearised, mlp

Risk = Literal["mean", "cvar", "mean-std"]


class Actor(nn.Module):
    """Policy with normalisation, squashing and scaling inside: observation (..., S) to action (..., A) within its limits."""

    def __init__(self, *, observation: Standardiser, action: ActionScale, hidden: int) -> None:
        super().__init__()
        self.observation = observation
        self.action = action
        self.layers = mlp(observation.mean.shape[0], (hidden, hidden), action.center.shape[0])

    def forward(self, observation: Tensor) -> Tensor:
        """The action in the user's units."""
        return self.action.from_unit(self.unit_action(self.observation.standardise(observation)))

    def unit_action(self, standardised: Tensor) -> Tensor:
        """The action in [-1, 1], from a standardised observation."""
        return torch.tanh(self.layers(standardised))

    def linearised(self, observation: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """The action at (R, S), (R, A), and how its cotangents (R, C, A) are drawn back to the observation, (R, C, S)."""
        network = linearised(self.layers, self.observation.standardise(observation))
        squashed = torch.tanh(network.value)
        slope = (self.action.half_range * (1 - squashed.square())).unsqueeze(1)

        def pull_back(cotangent: Tensor) -> Tensor:
            return network.pull_back(cotangent * slope) / self.observation.std

        return self.action.from_unit(squashed), pull_back


def objective(returns: Tensor, *, risk: Risk, risk_level: float) -> Tensor:
    """What the actor maximises, from return samples (..., N) along the last axis.

    Args:
        returns: reparameterised return samples.
        risk: `mean`; `cvar`, the mean of the worst `risk_level` share, the last sample in part (Rockafellar and Uryasev, 2000); or
            `mean-std`, the mean less `risk_level` standard deviations.
        risk_level: share in (0, 1] for `cvar`, weight for `mean-std`; unused for `mean`.

    Returns:
        (...,): in units of reward.
    """
    if risk == "mean":
        return returns.mean(-1)
    if risk == "cvar":
        share = risk_level * returns.shape[-1]
        worst = math.ceil(share)
        weight = (share - torch.arange(worst, device=returns.device)).clamp(max=1.0).to(returns.dtype) / share
        return returns.topk(worst, dim=-1, largest=False).values @ weight
    return returns.mean(-1) - risk_level * returns.std(-1)
