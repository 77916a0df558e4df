"""The summary of the joint law that is served with every action, as operations that export to ONNX.

Order statistics come from one sort (TopK) and fixed interpolation weights, so quantiles never cross.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

TINY = 1e-12


class Summary(NamedTuple):
    """Of the joint samples at one observation and action; field names are those of the bundle's outputs."""

    return_mean: Tensor
    """(B,)"""
    return_std: Tensor
    """(B,)"""
    return_quantiles: Tensor
    """(B, Q), ascending"""
    return_cvar: Tensor
    """(B,) mean of the worst share"""
    gradient_mean: Tensor
    """(B, A)"""
    gradient_std: Tensor
    """(B, A)"""
    gradient_norm_quantiles: Tensor
    """(B, K), ascending"""
    gradient_sign_agreement: Tensor
    """(B, A) share of samples with the majority sign, 0.5 to 1"""
    gradient_resultant_length: Tensor
    """(B,) length of the mean unit vector (Mardia and Jupp, "Directional statistics", 2000)"""
    return_samples: Tensor
    """(B, N)"""
    gradient_samples: Tensor
    """(B, N, A)"""


class Quantiles(nn.Module):
    """Empirical quantiles by linear interpolation between order statistics (Hyndman and Fan 1996, type 7)."""

    below: Tensor
    weight: Tensor

    def __init__(self, levels: tuple[float, ...], count: int) -> None:
        super().__init__()
        position = torch.tensor(levels, dtype=torch.float64) * (count - 1)
        below = position.floor().long().clamp(max=count - 2)
        self.register_buffer("below", below)
        self.register_buffer("weight", (position - below).float())

    def forward(self, ascending: Tensor) -> Tensor:
        """(B, N) sorted samples to (B, Q)."""
        low, high = ascending[:, self.below], ascending[:, self.below + 1]
        return torch.minimum(low + self.weight * (high - low), high)


class Summarise(nn.Module):
    """From joint samples to their summary."""

    worst: Tensor

    def __init__(
        self, *, count: int, return_levels: tuple[float, ...], cvar_level: float, norm_levels: tuple[float, ...]
    ) -> None:
        super().__init__()
        self.count = count
        self.return_quantiles = Quantiles(return_levels, count)
        self.norm_quantiles = Quantiles(norm_levels, count)
        share = torch.full((count,), cvar_level * count) - torch.arange(count)
        self.register_buffer("worst", share.clamp(0, 1) / (cvar_level * count))

    def forward(self, returns: Tensor, gradients: Tensor) -> Summary:
        """Summarise returns (B, N) and their action gradients (B, N, A); statistics divide by N."""
        ascending = self._sort(returns)
        norm = gradients.square().sum(-1).sqrt()
        positive = (gradients > 0).to(gradients.dtype).mean(1)
        mean = returns.mean(1)
        gradient_mean = gradients.mean(1)
        direction = (gradients / (norm + TINY).unsqueeze(-1)).mean(1)
        return Summary(
            return_mean=mean,
            return_std=(returns - mean.unsqueeze(-1)).square().mean(1).sqrt(),
            return_quantiles=self.return_quantiles(ascending),
            return_cvar=(ascending * self.worst).sum(1),
            gradient_mean=gradient_mean,
            gradient_std=(gradients - gradient_mean.unsqueeze(1)).square().mean(1).sqrt(),
            gradient_norm_quantiles=self.norm_quantiles(self._sort(norm)),
            gradient_sign_agreement=torch.maximum(positive, 1 - positive),
            gradient_resultant_length=direction.square().sum(-1).sqrt(),
            return_samples=returns,
            gradient_samples=gradients,
        )

    def _sort(self, samples: Tensor) -> Tensor:
        return samples.topk(self.count, dim=1, largest=False, sorted=True).values
