"""Distances between the predicted and the target law of the joint vector [return; gradients].

Squared MMD in the kernels of `KERNELS`. Estimator: the unbiased U-statistic (Gretton et al., "A kernel two-sample test", JMLR 2012,
Lemma 6), which leaves the diagonal out, or their biased V-statistic, which keeps it and shrinks the learned spread at few samples.

A predicted and a target sample may be driven by the same noise. As in that lemma, whose statistic is one of pairs, such two are then
not compared with each other, which keeps the estimate unbiased; and since both laws then scatter alike, it varies far less.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Kernel = Literal["multiquadric", "gaussian"]
Estimator = Literal["unbiased", "biased"]


def multiquadric(squared: Tensor, bandwidth: float) -> Tensor:
    """-sqrt(1 + h^2 d^2) / h of squared distances d^2: conditionally positive definite, for large h its MMD^2 is the energy distance."""
    return -(1.0 / bandwidth**2 + squared).sqrt()


def gaussian(squared: Tensor, bandwidth: float) -> Tensor:
    """exp(-h^2 d^2 / 2) of squared distances d^2; blind to laws further apart than a few 1 / h."""
    return (-0.5 * bandwidth**2 * squared).exp()


SAMPLES_PER_DIRECTION = 10  # at least, where there are more than two parts
MOST_PARTS = 4
SCATTERED = (
    16  # places where the search for the steepest direction begins, beside the axes and the difference of the means
)
SHORTER = 0.4  # of a step of the search for a direction, after one that led down

KERNELS: dict[Kernel, Callable[[Tensor, float], Tensor]] = {"multiquadric": multiquadric, "gaussian": gaussian}


def mmd2(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float,
    kernel: Kernel = "multiquadric",
    estimator: Estimator = "unbiased",
    together: Tensor | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy of two sample sets.

    Args:
        x: predicted samples, (..., N, D), columns return [standardised] and its gradients [standardised].
        y: target samples, (..., M, D); leading axes broadcast against those of `x`. Gradients flow into `y` unless it is detached.
        bandwidth: h > 0 of the kernel, in inverse units of the samples.
        kernel: multiquadric (the paper's, divided by h) or Gaussian.
        estimator: unbiased (U-statistic) or biased (V-statistic).
        together: (..., N, M) true for a predicted and a target sample driven by the same noise; leading axes broadcast against those of
            `x`. Without it all samples of `x` are independent of those of `y`.

    Returns:
        (...,): the unbiased estimate may be negative, since the distance is near zero.

    Raises:
        ValueError: if D differs, a set has fewer samples than the estimator needs, or the bandwidth is not positive.
    """
    least = 2 if estimator == "unbiased" else 1
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"both sample sets need the same number of columns, got {x.shape[-1]} and {y.shape[-1]}")
    if min(x.shape[-2], y.shape[-2]) < least:
        raise ValueError(
            f"the {estimator} estimator needs at least {least} sample{'s'[: least - 1]} on each side, got {x.shape[-2]} and {y.shape[-2]}"
        )
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return KERNELS[kernel]((a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1), bandwidth)

    def within(a: Tensor) -> Tensor:
        all_pairs, count = similarity(a, a), a.shape[-2]
        if estimator == "biased":
            return all_pairs.mean((-2, -1))
        diagonal = count * KERNELS[kernel](a.new_zeros(()), bandwidth)
        return (all_pairs.sum((-2, -1)) - diagonal) / (count * (count - 1))

    def between(a: Tensor, b: Tensor) -> Tensor:
        if together is None:
            return similarity(a, b).mean((-2, -1))
        apart = (~together).to(a.dtype)
        return (similarity(a, b) * apart).sum((-2, -1)) / apart.sum((-2, -1))

    return within(x) + within(y) - 2.0 * between(x, y)


def max_sliced_mmd2(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float,
    kernel: Kernel = "multiquadric",
    estimator: Estimator = "unbiased",
    together: Tensor | None = None,
) -> Tensor:
    """Largest squared MMD over one-dimensional projections, the direction sought separately for every leading index.

    The direction is sought with samples detached; only the last evaluation carries the critic's graph (Danskin). The maximum of an
    estimate is biased upward: `cross_fitted_sliced_mmd2` is not. Arguments, result and errors as `mmd2`.
    """
    direction = steepest_direction(x, y, bandwidth=bandwidth, kernel=kernel, estimator=estimator, together=together)
    return sliced_mmd2(x, y, direction, bandwidth=bandwidth, kernel=kernel, estimator=estimator, together=together)


def cross_fitted_sliced_mmd2(
    x: Tensor, y: Tensor, *, bandwidth: float, kernel: Kernel = "multiquadric", together: Tensor | None = None
) -> Tensor:
    """Squared MMD along the steepest direction of other samples: a part of them gives a direction, the rest is measured along it, in turn.

    The direction being independent of the samples measured, the U-statistic stays unbiased and the loss least where both laws agree.
    The maximum over one and the same samples is positive even there, and grows with the spread of the predicted law, which it therefore
    shrinks. There are two parts, or up to four of ten samples each: a direction needs fewer samples than a distance. Samples driven by
    the same noise belong into the same part, so both sets are cut at the same shares. Gradients are those along fixed directions.
    Arguments, result and errors as `mmd2`, with at least four samples a side. Of one column there is no direction to seek.
    """
    if x.shape[-1] == 1:
        return mmd2(x, y, bandwidth=bandwidth, kernel=kernel, together=together)
    counts = (x.shape[-2], y.shape[-2])
    parts = max(2, min(MOST_PARTS, min(counts) // SAMPLES_PER_DIRECTION))
    cuts = [part * counts[0] // parts for part in range(parts + 1)]
    measured = []
    for low, high in pairwise(cuts):
        part, rest = zip(*(_apart(count, low / counts[0], high / counts[0]) for count in counts), strict=True)
        same = [None if together is None else together[..., of_x, :][..., of_y] for of_x, of_y in (part, rest)]
        direction = steepest_direction(
            x[..., part[0], :], y[..., part[1], :], bandwidth=bandwidth, kernel=kernel, together=same[0]
        )
        others = (x[..., rest[0], :], y[..., rest[1], :])
        measured.append(sliced_mmd2(*others, direction, bandwidth=bandwidth, kernel=kernel, together=same[1]))
    return torch.stack(measured).mean(0)


def _apart(count: int, low: float, high: float) -> tuple[list[int], list[int]]:
    """Indices below `count` within these shares of it, and all others."""
    within = range(round(low * count), round(high * count))
    return list(within), [index for index in range(count) if index not in within]


def sliced_mmd2(
    x: Tensor,
    y: Tensor,
    direction: Tensor,
    *,
    bandwidth: float,
    kernel: Kernel = "multiquadric",
    estimator: Estimator = "unbiased",
    together: Tensor | None = None,
) -> Tensor:
    """Squared MMD of the samples projected on unit directions, (..., D); otherwise as `mmd2`."""
    along = direction.unsqueeze(-1)
    return mmd2(x @ along, y @ along, bandwidth=bandwidth, kernel=kernel, estimator=estimator, together=together)


def steepest_direction(
    x: Tensor,
    y: Tensor,
    *,
    bandwidth: float,
    kernel: Kernel = "multiquadric",
    estimator: Estimator = "unbiased",
    together: Tensor | None = None,
    starts: int = 3,
    ascent_steps: int = 6,
    step_size: float = 0.4,
) -> Tensor:
    """Unit vectors, (..., D), that make the projected squared MMD large.

    The best few of the coordinate axes, the difference of the means and directions scattered over the sphere climb by projected
    gradient ascent on it, for the landscape has several peaks: laws may differ in their correlations alone, which no axis shows. A
    step that leads down is taken back and the next one is shorter. The highest climber wins.
    """

    def measured(direction: Tensor) -> Tensor:
        return sliced_mmd2(x, y, direction, bandwidth=bandwidth, kernel=kernel, estimator=estimator, together=together)

    def height_of(direction: Tensor) -> tuple[Tensor, Tensor]:
        value = measured(direction)
        return value.sum(), value

    def climbed(direction: Tensor) -> tuple[Tensor, Tensor]:
        slope, (_, value) = torch.func.grad_and_value(height_of, has_aux=True)(direction)
        return value, slope

    x, y = x.detach(), y.detach()
    difference = x.mean(-2) - y.mean(-2)
    size = x.shape[-1]
    fixed = torch.cat([torch.eye(size, device=x.device), scattered_directions(SCATTERED, size, x.device)]).to(x.dtype)
    candidates = torch.stack([functional.normalize(difference, dim=-1), *(one.expand_as(difference) for one in fixed)])
    with torch.no_grad():
        heights = measured(candidates)
    best = heights.topk(min(starts, len(candidates)), dim=0).indices
    direction = _chosen(candidates, best)
    height, slope = climbed(direction)
    step = torch.full_like(height, step_size)
    for _ in range(ascent_steps):
        tangent = slope - (slope * direction).sum(-1, keepdim=True) * direction
        trial = functional.normalize(direction + step.unsqueeze(-1) * functional.normalize(tangent, dim=-1), dim=-1)
        reached, trial_slope = climbed(trial)
        higher = reached > height
        direction = torch.where(higher.unsqueeze(-1), trial, direction)
        slope = torch.where(higher.unsqueeze(-1), trial_slope, slope)
        height, step = torch.maximum(reached, height), torch.where(higher, step, SHORTER * step)
    return _chosen(direction, height.argmax(0, keepdim=True))[0]


def scattered_directions(count: int, size: int, device: torch.device | None = None) -> Tensor:
    """The same unit vectors at every call, (count, size), through points spread in a cube.

    Exact integers modulo a prime, so that compiled code, float64 and every device search from the same directions.
    """
    row, column = torch.arange(1, count + 1, device=device), torch.arange(1, size + 1, device=device)
    return functional.normalize((101 * row[:, None] + 1009 * column) ** 3 % 65521 / 65521 - 0.5, dim=-1)


def _chosen(directions: Tensor, index: Tensor) -> Tensor:
    """Of directions (C, ..., D) those at the index (K, ...), (K, ..., D)."""
    return directions.gather(0, index.unsqueeze(-1).expand(*index.shape, directions.shape[-1]))
