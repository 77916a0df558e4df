"""How good a policy is: episodes on held-out seeds, without exploration noise, in the perturbed task."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from sim_bridge.tasks import make_task

FIRST_EVALUATION_SEED = 2_000_000_000
Environment = gymnasium.Env[Any, Any]
Policy = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Undiscounted returns of whole episodes, in units of reward."""

    seeds: tuple[int, ...]
    returns: tuple[float, ...]

    def summary(self) -> dict[str, float]:
        """Mean, standard deviation, median and worst return."""
        return {
            "return_mean": statistics.fmean(self.returns),
            "return_std": statistics.pstdev(self.returns),
            "return_median": statistics.median(self.returns),
            "return_min": min(self.returns),
        }


def evaluation_seeds(episodes: int) -> tuple[int, ...]:
    """Seeds that no training episode uses, the same for every run."""
    return tuple(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes))


def evaluate(policy: Policy, *, environment: str, perturbations: Sequence[str], seeds: Sequence[int]) -> Evaluation:
    """Run one episode per seed.

    Args:
        policy: observation (S,) to action (A,).
        environment: Gymnasium id.
        perturbations: as in training.
        seeds: of the episodes.
    """
    env = make_task(environment, perturbations=perturbations)
    try:
        return Evaluation(seeds=tuple(seeds), returns=tuple(_episode_return(env, policy, seed) for seed in seeds))
    finally:
        env.close()


def _episode_return(env: Environment, policy: Policy, seed: int) -> float:
    observation, _ = env.reset(seed=seed)
    total, over = 0.0, False
    while not over:
        observation, reward, terminated, truncated, _ = env.step(policy(observation.astype(np.float32)))
        total += float(reward)
        over = terminated or truncated
    return total


def torch_policy(act: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Policy:
    """A policy for `evaluate` from a function of tensors."""

    def policy(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return act(torch.as_tensor(observation, device=device)).cpu().numpy()

    return policy
