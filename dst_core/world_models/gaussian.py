"""Diagonal Gaussians whose scale stays within limits."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

LOG_STD_MIN, LOG_STD_MAX = -7.0, 2.0


class Gaussian(NamedTuple):
    """A diagonal Gaussian over the last axis."""

    mean: Tensor
    log_std: Tensor

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """One reparameterised draw per row."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise

    def log_density(self, x: Tensor) -> Tensor:
        """Nats at x, summed over the last axis."""
        error = (x - self.mean) / self.log_std.exp()
        return -(0.5 * error.square() + self.log_std + 0.5 * math.log(2 * math.pi)).sum(-1)

    def divergence(self, other: "Gaussian") -> Tensor:
        """Kullback-Leibler divergence from `other` to self, summed over the last axis."""
        ratio = (self.mean - other.mean) / other.log_std.exp()
        log_ratio = self.log_std - other.log_std
        return 0.5 * ((2 * log_ratio).exp() + ratio.square() - 1 - 2 * log_ratio).sum(-1)
