"""The quantile Huber loss (Dabney et al., "Distributional reinforcement learning with quantile regression", AAAI 2018, eq. 10)."""

import torch
from torch import Tensor
from torch.nn import functional

# In units of the return scale. The loss finds quantiles only where this is small against the spread of the law; above it they turn
# into expectiles, and bootstrapping on expectiles as if they were samples lets the spread collapse (Rowland et al., "Statistics and
# samples in distributional reinforcement learning", ICML 2019). The usual 1 in units of reward is small for returns in the hundreds.
HUBER_THRESHOLD = 0.01


def quantile_huber_loss(
    predicted: Tensor, fractions: Tensor, target: Tensor, *, threshold: float = HUBER_THRESHOLD
) -> Tensor:
    """Mean of |tau - 1{u < 0}| L(u) / threshold over all pairs u = target - predicted, L the Huber loss.

    Args:
        predicted: quantiles, (..., N), standardised.
        fractions: tau of each, broadcast against `predicted`, in (0, 1).
        target: samples, (..., K); leading axes broadcast against those of `predicted`.
        threshold: where the Huber loss turns from a parabola into a line, in units of the samples.

    Returns:
        (...,)
    """
    error = target.unsqueeze(-2) - predicted.unsqueeze(-1)
    huber = functional.smooth_l1_loss(error, torch.zeros_like(error), reduction="none", beta=threshold)
    weight = (fractions.unsqueeze(-1) - (error < 0).to(error.dtype)).abs()
    return (weight * huber).mean((-2, -1))
