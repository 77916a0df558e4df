"""Distances between the predicted and the target law of the joint vector [return; gradients].

Kernel: multiquadric, k(x, y) = -sqrt(1 + h^2 |x - y|^2) with bandwidth h. It is conditionally positive definite, and for large h its
squared MMD divided by h tends to the energy distance. Estimator: the unbiased U-statistic (Gretton et al., "A kernel two-sample test",
JMLR 2012, Lemma 6), which leaves the diagonal out; the biased V-statistic shrinks the learned spread at few samples.
"""

import torch
from torch import Tensor
from torch.nn import functional


def _mean_distance(x: Tensor, y: Tensor, bandwidth: float, pairs: int) -> Tensor:
    """Sum of sqrt(1 + h^2 |x_i - y_j|^2) / h over all i, j, divided by the number of pairs that count."""
    squared = (x.unsqueeze(-2) - y.unsqueeze(-3)).square().sum(-1)
    return (1.0 / bandwidth**2 + squared).sqrt().sum((-2, -1)) / pairs


def mmd2(x: Tensor, y: Tensor, *, bandwidth: float) -> Tensor:
    """Squared maximum mean discrepancy of two sample sets, unbiased, divided by the bandwidth.

    Args:
        x: predicted samples, (..., N, D), columns return [standardised] and its gradients [standardised].
        y: target samples, (..., M, D); leading axes broadcast against those of `x`. Gradients flow into `y` unless it is detached.
        bandwidth: h > 0 of the multiquadric kernel, in inverse units of the samples.

    Returns:
        (...,): may be negative, since it is unbiased and the distance is near zero.

    Raises:
        ValueError: if D differs, a set has fewer than two samples, or the bandwidth is not positive.
    """
    n, m = x.shape[-2], y.shape[-2]
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(f"both sample sets need the same number of columns, got {x.shape[-1]} and {y.shape[-1]}")
    if n < 2 or m < 2:
        raise ValueError(f"the unbiased estimator needs at least two samples on each side, got {n} and {m}")
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    diagonal = 1.0 / bandwidth
    between = _mean_distance(x, y, bandwidth, n * m)
    within_x = _mean_distance(x, x, bandwidth, n * (n - 1)) - diagonal / (n - 1)
    within_y = _mean_distance(y, y, bandwidth, m * (m - 1)) - diagonal / (m - 1)
    return 2.0 * between - within_x - within_y


def max_sliced_mmd2(x: Tensor, y: Tensor, *, bandwidth: float, ascent_steps: int = 5, step_size: float = 0.3) -> Tensor:
    """Largest squared MMD over one-dimensional projections, the direction sought separately for every leading index.

    The direction starts at the best of the coordinate axes and the difference of the means and climbs by projected gradient ascent on
    the sphere with samples detached; only the last evaluation carries the critic's graph (Danskin). Arguments, result and errors as
    `mmd2`.
    """
    direction = _steepest_direction(x.detach(), y.detach(), bandwidth, ascent_steps, step_size)
    return _sliced(x, y, direction, bandwidth)


def _sliced(x: Tensor, y: Tensor, direction: Tensor, bandwidth: float) -> Tensor:
    along = direction.unsqueeze(-1)
    return mmd2(x @ along, y @ along, bandwidth=bandwidth)


def _steepest_direction(x: Tensor, y: Tensor, bandwidth: float, ascent_steps: int, step_size: float) -> Tensor:
    """Unit vectors, (..., D), that make the projected squared MMD large."""
    difference = x.mean(-2) - y.mean(-2)
    axes = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    candidates = [functional.normalize(difference, dim=-1), *(axis.expand_as(difference) for axis in axes)]
    values = torch.stack([_sliced(x, y, candidate, bandwidth) for candidate in candidates])
    best = values.argmax(0)
    direction = torch.stack(candidates).gather(0, best[None, ..., None].expand(1, *difference.shape))[0]
    best_value = values.amax(0)
    for step in range(ascent_steps):
        trial = direction.clone().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(_sliced(x, y, trial, bandwidth).sum(), trial)
        tangent = slope - (slope * direction).sum(-1, keepdim=True) * direction
        trial = functional.normalize(direction + step_size / (1 + step) * functional.normalize(tangent, dim=-1), dim=-1)
        value = _sliced(x, y, trial, bandwidth)
        direction = torch.where((value > best_value).unsqueeze(-1), trial, direction)
        best_value = torch.maximum(value, best_value)
    return direction
