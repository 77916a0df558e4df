"""The Sobolev Bellman operator is a contraction in the max-sliced distance: exact backups on the linear-quadratic problem.

With x = (s, a) and x' = G x + E w the full joint vector obeys [Z; dZ/dx](x) = [r; dr/dx] + discount L [Z; dZ/dx](x'), L = diag(1, G').
The squared MMD of the multiquadric kernel scales like a length, so after a backup the largest squared sliced MMD at x is at most
discount * kappa times the largest one at its successors, kappa the norm of L.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from dst_core.mmd import max_sliced_mmd2
from tests.dst_core.linear_quadratic import LinearQuadratic

Critic = Callable[[Tensor], Tensor]  # x (R, S + A) to one return sample per row
SAMPLES = 96


def problem(motion_noise: float) -> LinearQuadratic:
    one = np.eye(1)
    return LinearQuadratic(
        A=0.9 * one, B=0.5 * one, K=0.6 * one, Q=one, R=0.1 * one, Sigma=motion_noise**2 * one, discount=0.8
    )


def jacobian(lq: LinearQuadratic) -> np.ndarray:
    return np.concatenate([np.eye(len(lq.A)), -lq.K]) @ np.concatenate([lq.A, lq.B], 1)


def factor(lq: LinearQuadratic) -> float:
    return lq.discount * max(1.0, float(np.linalg.norm(jacobian(lq), 2)))


def joint_after(backups: int, critic: Critic, lq: LinearQuadratic, x: Tensor, generator: torch.Generator) -> Tensor:
    """Samples of [Z; dZ/dx] after exact backups of a critic at points x, (P, D): (P, N, 1 + D)."""
    S = len(lq.A)
    G, Q, R = (torch.as_tensor(matrix) for matrix in (jacobian(lq), lq.Q, lq.R))
    enter = torch.as_tensor(np.concatenate([np.eye(S), -lq.K]) @ np.linalg.cholesky(lq.Sigma))
    start = x[:, None].expand(-1, SAMPLES, -1).flatten(0, 1).clone().requires_grad_()
    point, total = start, torch.zeros(len(start), dtype=x.dtype)
    for t in range(backups):
        s, a = point[:, :S], point[:, S:]
        total = total - lq.discount**t * (((s @ Q) * s).sum(-1) + ((a @ R) * a).sum(-1))
        noise = torch.randn(len(start), S, generator=generator, dtype=x.dtype)
        point = point @ G.T + noise @ enter.T
    total = total + lq.discount**backups * critic(point)
    (gradient,) = torch.autograd.grad(total.sum(), start)
    return torch.cat([total.unsqueeze(-1), gradient], -1).detach().view(len(x), SAMPLES, -1)


def distance(backups: int, first: Critic, second: Critic, lq: LinearQuadratic, x: Tensor) -> Tensor:
    """Max-sliced squared MMD of two critics' laws after exact backups, at every point x, (P, D): (P,)."""
    laws = [joint_after(backups, critic, lq, x, torch.Generator().manual_seed(0)) for critic in (first, second)]
    return max_sliced_mmd2(*laws, bandwidth=100.0)


def successors(lq: LinearQuadratic, x: Tensor, count: int) -> Tensor:
    """Draws of x' from every point x, (P, D): (P, count, D)."""
    S = len(lq.A)
    noise = torch.randn(len(x), count, S, generator=torch.Generator().manual_seed(9), dtype=x.dtype)
    enter = torch.as_tensor(np.concatenate([np.eye(S), -lq.K]) @ np.linalg.cholesky(lq.Sigma))
    return (x @ torch.as_tensor(jacobian(lq)).T).unsqueeze(1) + noise @ enter.T


def bumpy(seed: int) -> Critic:
    """A random law that is bounded and smooth in x: tanh features with noise inside and a random height."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(2, 8, generator=generator, dtype=torch.float64) / 2
    height = 20 * torch.randn(8, generator=generator, dtype=torch.float64)

    def critic(x: Tensor) -> Tensor:
        noise = torch.randn(len(x), 8, generator=generator, dtype=torch.float64)
        return torch.tanh(x @ weight + noise) @ height

    return critic


@pytest.mark.parametrize("backups", [0, 1])
def test_backup_shrinks_the_distance_at_the_successors_by_the_factor_or_more(backups: int) -> None:
    lq = problem(0.3)
    critics = bumpy(0), bumpy(1)
    x = 2 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    after = distance(backups + 1, *critics, lq, x)
    before = distance(backups, *critics, lq, successors(lq, x, 8).flatten(0, 1)).view(4, 8).amax(1)
    assert (after <= 1.02 * factor(lq) * before).all(), after / before
    assert (after > 0.1 * before).all(), "a distance that is lost in noise shows nothing"


def test_factor_is_reached_by_critics_that_differ_along_the_steepest_gradient() -> None:
    lq, origin = problem(1e-3), torch.zeros(1, 2).double()
    left, _, _ = np.linalg.svd(jacobian(lq))
    along = torch.as_tensor(left[:, 0])
    critics: tuple[Critic, Critic] = (lambda x: 5 * x @ along, lambda x: -5 * x @ along)
    before, after = (float(distance(number, *critics, lq, origin)) for number in (0, 1))
    assert factor(lq) == pytest.approx(0.9605, abs=1e-3)
    assert after / before == pytest.approx(factor(lq), rel=0.02)


def test_constants_apart_shrink_by_the_discount() -> None:
    lq, origin = problem(0.1), torch.zeros(1, 2).double()
    critics: tuple[Critic, Critic] = (lambda x: 0 * x[:, 0] + 200, lambda x: 0 * x[:, 0] - 200)
    found = [float(distance(number, *critics, lq, origin)) for number in range(4)]
    assert np.divide(found[1:], found[:-1]) == pytest.approx(lq.discount, rel=0.02)
