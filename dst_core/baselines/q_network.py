"""The network behind Q functions and fixed quantiles: E critics from (s, a) to N outputs, as one batched network."""

import torch
from torch import Tensor, nn

from dst_core.networks import ActionScale, EnsembleLinear, Standardiser


class QNetwork(nn.Module):
    """E perceptrons with two hidden layers; N = 1 output is a Q function, N quantiles describe the law of the return."""

    return_scale: Tensor

    def __init__(
        self, *, observation: Standardiser, action: ActionScale, hidden: int, members: int, outputs: int
    ) -> None:
        super().__init__()
        self.observation = observation
        self.action = action
        inputs = observation.mean.shape[0] + action.center.shape[0]
        self.layers = nn.Sequential(
            EnsembleLinear(members, inputs, hidden),
            nn.SiLU(),
            EnsembleLinear(members, hidden, hidden),
            nn.SiLU(),
            EnsembleLinear(members, hidden, outputs),
        )
        self.register_buffer("return_scale", torch.ones(()))

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Outputs at each state-action pair.

        Args:
            observation: (B, S), or (E, B, S) where each critic sees its own.
            action: (B, A) or (E, B, A) alike, in the user's units.

        Returns:
            (E, B, N) in units of reward.
        """
        inputs = torch.cat([self.observation.standardise(observation), self.action.to_unit(action)], -1)
        outputs: Tensor = self.return_scale * self.layers(inputs)
        return outputs
