"""The linear-quadratic-Gaussian problem, whose joint law of return and action gradient is known exactly.

s' = A s + B a + w, w ~ N(0, Sigma); a = -K s; r = -(s'Q s + a'R a).
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dst_core.world_model import ModelDraw, Transition


@dataclass(frozen=True, kw_only=True)
class LinearQuadratic:
    A: np.ndarray
    B: np.ndarray
    K: np.ndarray
    Q: np.ndarray
    R: np.ndarray
    Sigma: np.ndarray
    discount: float

    @classmethod
    def scalar(cls) -> "LinearQuadratic":
        one = np.eye(1)
        return cls(A=0.9 * one, B=0.5 * one, K=0.6 * one, Q=one, R=0.1 * one, Sigma=0.09 * one, discount=0.9)

    def closed_form(self, s: np.ndarray, a: np.ndarray) -> dict[str, np.ndarray]:
        """Mean and standard deviation of Z and of its action gradient at (s, a)."""
        g, M = self.discount, self.A - self.B @ self.K
        P = _fixed_point(self.Q + self.K.T @ self.R @ self.K, lambda X: g * M.T @ X @ M)
        psp = P @ self.Sigma @ P
        U = _fixed_point(4 * g**2 * M.T @ psp @ M, lambda X: g**2 * M.T @ X @ M)
        X = _fixed_point(psp, lambda Y: g**2 * M.T @ Y @ M)
        y = self.A @ s + self.B @ a
        spread = np.trace(U @ self.Sigma) + 2 * np.trace(P @ self.Sigma @ P @ self.Sigma)
        c = g**2 * spread / (1 - g**2)
        mean = -(s @ self.Q @ s + a @ self.R @ a) - g * (y @ P @ y + np.trace(P @ self.Sigma) / (1 - g))
        variance = g**2 * (y @ U @ y + c + spread + 4 * y @ psp @ y)
        return {
            "return_mean": np.asarray(mean),
            "return_std": np.sqrt(np.asarray(variance)),
            "gradient_mean": -2 * self.R @ a - 2 * g * self.B.T @ P @ y,
            "gradient_std": np.sqrt(np.diag(4 * g**2 * self.B.T @ X @ self.B)),
        }

    def simulate(
        self, s: np.ndarray, a: np.ndarray, *, runs: int, steps: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Monte-Carlo samples of (Z, dZ/da), (runs,) and (runs, A), along explicit trajectories."""
        rng = np.random.default_rng(seed)
        noise = rng.multivariate_normal(np.zeros(len(s)), self.Sigma, size=(runs, steps))
        state, action = np.tile(s, (runs, 1)), np.tile(a, (runs, 1))
        by_action = np.tile(np.zeros((len(s), len(a))), (runs, 1, 1))
        total, gradient = np.zeros(runs), np.zeros((runs, len(a)))
        for t in range(steps):
            weight = self.discount**t
            total += weight * self.reward(state, action)
            d_action = np.tile(np.eye(len(a)), (runs, 1, 1)) if t == 0 else -self.K @ by_action
            cost_slope = np.einsum("ri,rij->rj", state @ self.Q, by_action) + np.einsum(
                "ri,rij->rj", action @ self.R, d_action
            )
            gradient -= 2 * weight * cost_slope
            by_action = self.A @ by_action + self.B @ d_action
            state = state @ self.A.T + action @ self.B.T + noise[:, t]
            action = -state @ self.K.T
        return total, gradient

    def reward(self, state: np.ndarray, action: np.ndarray) -> np.ndarray:
        return -(np.einsum("ri,ij,rj->r", state, self.Q, state) + np.einsum("ri,ij,rj->r", action, self.R, action))

    def transitions(self, *, count: int, width: float, seed: int) -> Transition:
        """Real transitions from states and actions spread uniformly over [-width, width]."""
        rng = np.random.default_rng(seed)
        s = rng.uniform(-width, width, (count, self.A.shape[0]))
        a = rng.uniform(-width, width, (count, self.B.shape[1]))
        w = rng.multivariate_normal(np.zeros(len(self.A)), self.Sigma, size=count)
        rows = (s, a, self.reward(s, a), s @ self.A.T + a @ self.B.T + w, np.zeros(count))
        return Transition(*(torch.as_tensor(row, dtype=torch.float32) for row in rows))


def _fixed_point(constant: np.ndarray, step) -> np.ndarray:
    value = constant
    for _ in range(2000):
        value = constant + step(value)
    return value


class TrueSimulator:
    """The problem's own dynamics as a `StepModel`."""

    reward_range = (torch.tensor(-torch.inf), torch.tensor(torch.inf))

    def __init__(self, problem: LinearQuadratic) -> None:
        self.A, self.B, self.Q, self.R = (
            torch.as_tensor(m, dtype=torch.float32) for m in (problem.A, problem.B, problem.Q, problem.R)
        )
        self.root = torch.linalg.cholesky(torch.as_tensor(problem.Sigma, dtype=torch.float32))

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        noise = torch.randn(observation.shape, generator=generator) @ self.root.T
        reward = -((observation @ self.Q) * observation).sum(-1) - ((action @ self.R) * action).sum(-1)
        return ModelDraw(observation @ self.A.T + action @ self.B.T + noise, reward, torch.zeros(len(observation)))


class LinearActor(nn.Module):
    def __init__(self, problem: LinearQuadratic) -> None:
        super().__init__()
        self.register_buffer("K", torch.as_tensor(problem.K, dtype=torch.float32))

    def forward(self, observation: Tensor) -> Tensor:
        return -observation @ self.K.T
