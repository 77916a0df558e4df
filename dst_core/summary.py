"""The summary of the joint law that is served with every action, as few and cheap operations that export to ONNX.

Order statistics come from sorting (TopK) and fixed weights, so quantiles never cross.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

RETURN_LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
NORM_LEVELS = (0.1, 0.5, 0.9)
CVAR_LEVEL = 0.1
TINY = 1e-12


class Summary(NamedTuple):
    """Of the joint samples at one observation and action; field names are those of the bundle's outputs (docs/bundle.md)."""

    return_mean: Tensor
    """(B,)"""
    return_std: Tensor
    """(B,)"""
    return_quantiles_raw: Tensor
    """(B, Q), ascending"""
    return_cvar: Tensor
    """(B,) mean of the worst share"""
    return_below_threshold: Tensor
    """(B,) share of samples under the threshold"""
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
    critic_disagreement: Tensor
    """(B,) standard deviation between the critics' mean returns; divides by their number"""
    data_distance: Tensor
    """(B,) see `dst_core.data_distance`"""
    observation_gradient_mean: Tensor
    """(B, S) in reward per observation unit"""
    return_samples: Tensor
    """(B, N)"""
    gradient_samples: Tensor
    """(B, N, A)"""


class Quantiles(nn.Module):
    """Empirical quantiles by linear interpolation between order statistics (Hyndman and Fan 1996, type 7).

    All levels are one product with the sorted samples; sorting them once more undoes what its rounding may cross.
    """

    weight: Tensor

    def __init__(self, levels: tuple[float, ...], count: int) -> None:
        super().__init__()
        position = torch.tensor(levels, dtype=torch.float64) * (count - 1)
        distance = (torch.arange(count).unsqueeze(1) - position).abs()
        self.register_buffer("weight", (1 - distance).clamp_min(0).float())

    def forward(self, ascending: Tensor) -> Tensor:
        """(B, N) sorted samples to (B, Q)."""
        return _sorted(ascending @ self.weight)


class Summarise(nn.Module):
    """From joint samples, critic after critic, to their summary; statistics divide by the number of samples.

    Args:
        count: N, of samples.
        critics: how many share them evenly.
        return_threshold: in units of the discounted return.
        return_levels: Q, of the return's quantiles.
        cvar_level: worst share of returns to average.
        norm_levels: K, of the quantiles of the gradient's norm.
    """

    worst: Tensor
    between: Tensor
    return_threshold: Tensor

    def __init__(
        self,
        *,
        count: int,
        critics: int,
        return_threshold: float,
        return_levels: tuple[float, ...] = RETURN_LEVELS,
        cvar_level: float = CVAR_LEVEL,
        norm_levels: tuple[float, ...] = NORM_LEVELS,
    ) -> None:
        super().__init__()
        self.count = count
        self.return_quantiles = Quantiles(return_levels, count)
        self.norm_quantiles = Quantiles(norm_levels, count)
        share = torch.full((count,), cvar_level * count) - torch.arange(count)
        self.register_buffer("worst", share.clamp(0, 1).unsqueeze(1) / (cvar_level * count))
        own = torch.eye(critics).repeat_interleave(count // critics, 0) / (count // critics)
        # One critic has nobody to disagree with, be it by rounding.
        self.register_buffer("between", own * (critics > 1) / critics**0.5)
        self.register_buffer("return_threshold", torch.tensor(return_threshold))

    def forward(
        self, returns: Tensor, gradients: Tensor, *, data_distance: Tensor, observation_gradient: Tensor
    ) -> Summary:
        """Summarise returns (B, N) and their action gradients (B, A, N); what is not of the samples, (B,) and (B, S), is passed on."""
        mean, gradient_mean = returns.mean(1, keepdim=True), gradients.mean(2, keepdim=True)
        centred = returns - mean
        ascending = _sorted(returns)
        norm = torch.linalg.vector_norm(gradients, dim=1)
        direction = (gradients / norm.clamp_min(TINY).unsqueeze(1)).mean(2)
        positive = (gradients > 0).to(gradients.dtype).mean(2)
        return Summary(
            return_mean=mean.squeeze(1),
            return_std=torch.linalg.vector_norm(centred, dim=1) * self.count**-0.5,
            return_quantiles_raw=self.return_quantiles(ascending),
            return_cvar=(ascending @ self.worst).squeeze(1),
            return_below_threshold=(returns < self.return_threshold).to(returns.dtype).mean(1),
            gradient_mean=gradient_mean.squeeze(2),
            gradient_std=torch.linalg.vector_norm(gradients - gradient_mean, dim=2) * self.count**-0.5,
            gradient_norm_quantiles=self.norm_quantiles(_sorted(norm)),
            gradient_sign_agreement=torch.maximum(positive, 1 - positive),
            gradient_resultant_length=torch.linalg.vector_norm(direction, dim=1),
            critic_disagreement=torch.linalg.vector_norm(centred @ self.between, dim=1),
            data_distance=data_distance,
            observation_gradient_mean=observation_gradient,
            return_samples=returns,
            gradient_samples=gradients.mT,
        )


def _sorted(values: Tensor) -> Tensor:
    """(B, N), ascending along each row."""
    return values.topk(values.shape[1], dim=1, largest=False, sorted=True).values
