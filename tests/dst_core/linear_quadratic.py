"""The linear-quadratic-Gaussian problem, whose law of the return and of its gradients is known exactly.

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

    @classmethod
    def planar(cls) -> "LinearQuadratic":
        """Two state dimensions, coupled, with one action and correlated noise."""
        return cls(
            A=np.array([[0.9, 0.2], [-0.1, 0.8]]),
            B=np.array([[0.1], [0.5]]),
            K=np.array([[0.2, 0.6]]),
            Q=np.diag([1.0, 0.5]),
            R=0.1 * np.eye(1),
            Sigma=np.array([[0.09, 0.03], [0.03, 0.06]]),
            discount=0.9,
        )

    def closed_form(self, s: np.ndarray, a: np.ndarray) -> dict[str, np.ndarray]:
        """Mean and standard deviation of Z and of its gradients by action and state at (s, a)."""
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
            "action_gradient_mean": -2 * self.R @ a - 2 * g * self.B.T @ P @ y,
            "action_gradient_std": np.sqrt(np.diag(4 * g**2 * self.B.T @ X @ self.B)),
            "state_gradient_mean": -2 * self.Q @ s - 2 * g * self.A.T @ P @ y,
            "state_gradient_std": np.sqrt(np.diag(4 * g**2 * self.A.T @ X @ self.A)),
        }

    def simulate(
        self, s: np.ndarray, a: np.ndarray, *, runs: int, steps: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Monte-Carlo samples of Z, dZ/da and dZ/ds, (runs,), (runs, A) and (runs, S), along explicit trajectories."""
        rng = np.random.default_rng(seed)
        S, A = len(s), len(a)
        noise = rng.multivariate_normal(np.zeros(S), self.Sigma, size=(runs, steps))
        state, action = np.tile(s, (runs, 1)), np.tile(a, (runs, 1))
        d_state, d_action = np.eye(S, S + A), np.eye(S + A)[S:]  # by the first (s, a); the same for all noise
        total, gradient = np.zeros(runs), np.zeros((runs, S + A))
        for t in range(steps):
            weight = self.discount**t
            total += weight * self.reward(state, action)
            gradient -= 2 * weight * (state @ self.Q @ d_state + action @ self.R @ d_action)
            state = state @ self.A.T + action @ self.B.T + noise[:, t]
            d_state = self.A @ d_state + self.B @ d_action
            action, d_action = -state @ self.K.T, -self.K @ d_state
        return total, gradient[:, S:], gradient[:, :S]

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
