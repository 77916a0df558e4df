"""The critic's loss: distance between predicted and target laws of the joint vector, with comparable scales for its columns."""

from typing import Literal

import torch
from torch import Tensor, nn

from dst_core.critic import JointSamples
from dst_core.mmd import Estimator, Kernel, cross_fitted_sliced_mmd2, max_sliced_mmd2, mmd2

Distance = Literal["mmd", "max-sliced-mmd"]

DIFFERENCES_AT_ONCE = 1 << 20
"""Numbers in the pairwise differences of some rows; larger arrays leave the processor's cache and cost several times as much per pair."""


class JointScale(nn.Module):
    """Running standard deviation of each column of the target, so that return and gradients weigh alike in the distance."""

    std: Tensor
    updates: Tensor

    def __init__(self, columns: int, *, rate: float = 0.01, floor: float = 1e-6) -> None:
        super().__init__()
        self.rate = rate
        self.floor = floor
        self.register_buffer("std", torch.ones(columns))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, target: Tensor) -> None:
        """Take in target samples, (B, K, D). The first ones count in full, later ones at `rate`."""
        self.updates += 1
        rate = (1.0 / self.updates).clamp_min(self.rate)
        self.std.lerp_(target.flatten(0, 1).std(0), rate.to(self.std.dtype)).clamp_(min=self.floor)


def sobolev_loss(
    predicted: JointSamples | Tensor,
    target: Tensor,
    *,
    std: Tensor,
    gradient_weight: float,
    distance: Distance,
    bandwidth: float,
    kernel: Kernel = "multiquadric",
    estimator: Estimator = "unbiased",
    blocks: tuple[str, ...] = ("action",),
    target_draw: Tensor | None = None,
) -> Tensor:
    """Distance of each critic's joint law to the target's, averaged over the batch and summed over the critics.

    Args:
        predicted: E critics' samples with their own gradients, as `joint` or, for these blocks, `joint_columns` gives them.
        target: (B, K, D), detached; columns as `sobolev_target` gives them for the same blocks.
        std: (D,) scale of each column, in the user's units.
        gradient_weight: weight of the gradient columns against the return, in standardised units.
        distance: plain or max-sliced squared MMD.
        bandwidth: of the kernel, in inverse standardised units.
        kernel: of the MMD.
        estimator: unbiased (of the max-sliced distance, the cross-fitted form) or biased.
        blocks: gradients that take part.
        target_draw: (B, K) index n < N of the predicted sample whose noise also drove the target sample; without it both laws were drawn
            independently of each other.

    Returns:
        (): loss in standardised units.
    """
    joint = predicted if isinstance(predicted, Tensor) else _columns(predicted, blocks)
    weight = torch.full_like(std, gradient_weight)
    weight[0] = 1.0
    unit = weight / std
    x, y = joint * unit, target * unit

    def discrepancy(x: Tensor, y: Tensor, draw: Tensor | None) -> Tensor:
        together = None if draw is None else draw.unsqueeze(1) == torch.arange(x.shape[2], device=x.device).unsqueeze(1)
        if distance == "mmd":
            return mmd2(x, y, bandwidth=bandwidth, kernel=kernel, estimator=estimator, together=together)
        if estimator == "unbiased":
            return cross_fitted_sliced_mmd2(x, y, bandwidth=bandwidth, kernel=kernel, together=together)
        return max_sliced_mmd2(x, y, bandwidth=bandwidth, kernel=kernel, estimator=estimator, together=together)

    rows = _rows_at_once(x, y, columns=x.shape[-1] if distance == "mmd" else 1)
    of_x, of_y = torch.split(x, rows, 1), torch.split(y, rows)
    draws = [None] * len(of_y) if target_draw is None else torch.split(target_draw, rows)
    parts = [discrepancy(*some) for some in zip(of_x, of_y, draws, strict=True)]
    return torch.cat(parts, -1).mean(-1).sum()


def _rows_at_once(x: Tensor, y: Tensor, *, columns: int) -> int:
    """Rows whose pairwise differences fit `DIFFERENCES_AT_ONCE`; all of them in compiled code, which never holds the differences."""
    if torch.compiler.is_compiling():
        return len(y)
    return max(1, DIFFERENCES_AT_ONCE // (x.shape[0] * x.shape[2] * max(x.shape[2], y.shape[1]) * columns))


def _columns(samples: JointSamples, blocks: tuple[str, ...]) -> Tensor:
    gradients = {"action": samples.action_gradient, "state": samples.observation_gradient}
    return torch.cat([samples.returns.unsqueeze(-1), *(gradients[block] for block in blocks)], -1)
