"""Building blocks shared by actor, critic and world model: normalisation that travels with the network, and plain layers."""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
LAST_LEARNING_RATE_SHARE = 0.01


class Standardiser(nn.Module):
    """Running mean, standard deviation and range of a vector, kept with the network that reads or writes it.

    Mean and variance are exact over all rows seen (Chan, Golub and LeVeque, 1983).
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    count: Tensor
    exact_mean: Tensor
    squared_deviation: Tensor

    def __init__(self, size: int, *, std_floor: float = 1e-3) -> None:
        super().__init__()
        self.std_floor = std_floor
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))
        self.register_buffer("low", torch.full((size,), torch.inf))
        self.register_buffer("high", torch.full((size,), -torch.inf))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("exact_mean", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("squared_deviation", torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def update(self, rows: Tensor) -> None:
        """Take in rows, (B, size)."""
        added = rows.double()
        total = self.count + len(added)
        difference = added.mean(0) - self.exact_mean
        self.squared_deviation += (added - added.mean(0)).square().sum(0)
        self.squared_deviation += difference.square() * self.count * len(added) / total
        self.exact_mean += difference * len(added) / total
        self.count.copy_(total)
        self.mean.copy_(self.exact_mean)
        self.std.copy_((self.squared_deviation / total).sqrt().clamp_min(self.std_floor))
        torch.minimum(self.low, rows.amin(0), out=self.low)
        torch.maximum(self.high, rows.amax(0), out=self.high)

    @property
    def range(self) -> tuple[Tensor, Tensor]:
        """Least and greatest rows seen, each (size,); infinite before the first one."""
        seen = self.count > 0
        return torch.where(seen, self.low, -torch.inf), torch.where(seen, self.high, torch.inf)

    def standardise(self, x: Tensor) -> Tensor:
        """From the user's units to zero mean and unit variance."""
        return (x - self.mean) / self.std

    def restore(self, x: Tensor) -> Tensor:
        """From standardised back to the user's units."""
        return x * self.std + self.mean

    def clamp(self, x: Tensor) -> Tensor:
        """Into the range of the rows seen; the identity before the first one."""
        return x.clamp(*self.range)


class ActionScale(nn.Module):
    """Between the user's action limits and [-1, 1]."""

    center: Tensor
    half_range: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.register_buffer("center", (high + low) / 2)
        self.register_buffer("half_range", (high - low) / 2)

    def to_unit(self, action: Tensor) -> Tensor:
        """Action in the user's units, (..., A), to [-1, 1]."""
        return (action - self.center) / self.half_range

    def from_unit(self, unit: Tensor) -> Tensor:
        """Action in [-1, 1], (..., A), to the user's units."""
        return self.center + self.half_range * unit


class EnsembleLinear(nn.Module):
    """E independent affine maps applied as one batched matrix product: (E, ..., in) to (E, ..., out)."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map (E, R, in) rows, or (R, in) rows shared by all members, to (E, R, out)."""
        if x.dim() == 2:
            x = x.expand(len(self.weight), *x.shape)
        return torch.baddbmm(self.bias, x, self.weight)


def silu(x: Tensor) -> tuple[Tensor, Tensor]:
    """X sigmoid(x) and its slope, elementwise."""
    gate = torch.sigmoid(x)
    return x * gate, gate * (1 + x * (1 - gate))


def chain_product(cotangent: Tensor, slopes: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Cotangents drawn back through layers: (((cotangent W_n' * slope_n-1) W_n-1') ... W_1'), multiplied in the cheapest order.

    The product of matrices is associative: rows of cotangents may go backward, inputs forward, or outputs backward, whichever are fewest.

    Args:
        cotangent: (..., R, out).
        slopes: of the activations behind each layer but the last, (..., 1 or R, H).
        weights: of each layer, (in, out) shared by all leading axes or (E, in, out) for the members of the first one.

    Returns:
        (..., R, in).
    """
    rows, inputs, outputs = cotangent.shape[-2], weights[0].shape[-2], weights[-1].shape[-1]
    shared = all(slope.shape[-2] == 1 for slope in slopes)
    if shared and inputs < rows and inputs <= outputs:
        tangent = _over_batch(weights[0])
        for slope, weight in zip(slopes, weights[1:], strict=True):
            tangent = _times(tangent * slope, weight)
        return cotangent @ tangent.mT
    if shared and outputs < rows:
        return cotangent @ _backward(_over_batch(weights[-1].mT) * slopes[-1], slopes[:-1], weights[:-1])
    return _backward(_times(cotangent, weights[-1].mT) * slopes[-1], slopes[:-1], weights[:-1])


def _backward(cotangent: Tensor, slopes: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    for slope, weight in zip(reversed(slopes), reversed(weights[1:]), strict=True):
        cotangent = _times(cotangent, weight.mT) * slope
    return _times(cotangent, weights[0].mT)


def _over_batch(weight: Tensor) -> Tensor:
    return weight if weight.dim() == 2 else weight.unsqueeze(1)


def _times(rows: Tensor, weight: Tensor) -> Tensor:
    flat = rows.flatten(0, -2) if weight.dim() == 2 else rows.flatten(1, -2)
    return (flat @ weight).view(*rows.shape[:-1], weight.shape[-1])


class Linearised(NamedTuple):
    """The value of a perceptron, and how cotangents are drawn back through it."""

    value: Tensor
    """(R, out)"""
    slopes: list[Tensor]
    """Of its activations, each (R, 1, H)."""
    weights: list[Tensor]
    """Of its layers, each (in, out)."""

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """(R, C, out) to (R, C, in)."""
        return chain_product(cotangent, self.slopes, self.weights)


def linearised(network: nn.Sequential, x: Tensor) -> Linearised:
    """A perceptron as `mlp` makes it at the rows x, (R, in)."""
    slopes = []
    *hidden, last = [layer for layer in network if isinstance(layer, nn.Linear)]
    for layer in hidden:
        x, slope = silu(layer(x))
        slopes.append(slope.unsqueeze(1))
    return Linearised(last(x), slopes, [layer.weight.mT for layer in (*hidden, last)])


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """A perceptron with SiLU between its layers: smooth, since its input gradients are trained or followed."""
    sizes = [inputs, *hidden]
    layers: list[nn.Module] = []
    for wide, narrow in pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))


def target_of(network: M) -> M:
    """A copy to be moved by `polyak`: parameters of its own without gradients, buffers (scales, limits) shared with the original."""
    return copy.deepcopy(network, {id(buffer): buffer for buffer in network.buffers()}).requires_grad_(False)


@torch.no_grad()
def polyak(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move the target's parameters by `rate` towards the source's."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def settling(optimiser: torch.optim.Optimizer, updates: int) -> torch.optim.lr_scheduler.LinearLR:
    """A step size that falls in a straight line to `LAST_LEARNING_RATE_SHARE` of itself, over so many updates."""
    return torch.optim.lr_scheduler.LinearLR(
        optimiser, start_factor=1.0, end_factor=LAST_LEARNING_RATE_SHARE, total_iters=updates
    )


def descend(optimiser: torch.optim.Optimizer, loss: Tensor, *, max_gradient_norm: float) -> None:
    """One step of the optimiser down the loss; only its own parameters receive gradients, scaled down to the norm given.

    Gradients are accumulated by autograd, which lays them out in memory as their parameters: fused Adam reads them in
    that order, whatever their strides say.
    """
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    optimiser.zero_grad()
    torch.autograd.backward(loss, inputs=parameters)
    nn.utils.clip_grad_norm_(parameters, max_gradient_norm)
    optimiser.step()
