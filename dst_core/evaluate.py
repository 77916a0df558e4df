"""How good a policy is: episodes on held-out seeds, without exploration noise, in the perturbed task."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray

from dst_core.errors import TrainingError
from dst_core.video import Video
from sim_bridge.tasks import describe_task, make_task
from sim_bridge.tasks.perturbations import task_name

FIRST_EVALUATION_SEED = 2_000_000_000
MOST_STEPS = 100_000
"""Of an episode without a time limit."""
Environment = gymnasium.Env[Any, Any]
Policy = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One whole episode of T steps."""

    observations: NDArray[np.float32]
    """(T + 1, S), the last one included"""
    actions: NDArray[np.float32]
    """(T + 1, A); the last one is what the policy would have done"""
    rewards: tuple[float, ...]
    """T"""
    terminated: bool
    """Whether a terminal state ended it; otherwise a time limit did"""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Whole episodes, one per seed."""

    seeds: tuple[int, ...]
    trajectories: tuple[Trajectory, ...]

    @property
    def returns(self) -> tuple[float, ...]:
        """Undiscounted return of every episode, in units of reward."""
        return tuple(sum(trajectory.rewards) for trajectory in self.trajectories)

    def summary(self) -> dict[str, float]:
        """Mean, standard deviation, median and worst return, and the mean number of steps."""
        return {
            "return_mean": statistics.fmean(self.returns),
            "return_std": statistics.pstdev(self.returns),
            "return_median": statistics.median(self.returns),
            "return_min": min(self.returns),
            "length_mean": statistics.fmean(len(trajectory.rewards) for trajectory in self.trajectories),
        }


def evaluation_seeds(episodes: int) -> tuple[int, ...]:
    """Seeds that no training episode uses, the same for every run."""
    return tuple(range(FIRST_EVALUATION_SEED, FIRST_EVALUATION_SEED + episodes))


def evaluate(
    policy: Policy,
    *,
    environment: str,
    perturbations: Sequence[str],
    seeds: Sequence[int],
    video: Path | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Run one episode per seed.

    Args:
        policy: observation (S,) to action (A,).
        environment: Gymnasium id.
        perturbations: as in training.
        seeds: of the episodes.
        video: MP4 file for the first episode; `require_rendering` says beforehand whether it can be.
        interrupted: asked at every step whether to leave.

    Returns:
        The episodes, or None if interrupted.

    Raises:
        TrainingError: if an episode does not end.
    """
    with ExitStack() as stack:
        env = make_task(environment, perturbations=perturbations, render_mode="rgb_array" if video else None)
        stack.callback(env.close)
        trajectories = []
        for index, seed in enumerate(seeds):
            with ExitStack() as filming:
                film = None
                if video is not None and index == 0:
                    film = filming.enter_context(Video(video, period_s=describe_task(env).control_period_s))
                trajectory = _episode(env, policy, seed, film, interrupted)
            if trajectory is None:
                return None
            trajectories.append(trajectory)
    return Evaluation(seeds=tuple(seeds), trajectories=tuple(trajectories))


def _episode(
    env: Environment, policy: Policy, seed: int, film: Video | None, interrupted: Callable[[], bool]
) -> Trajectory | None:
    observation, _ = env.reset(seed=seed)
    observations, actions = [observation.astype(np.float32)], []
    rewards: list[float] = []
    terminated = over = False
    while not over:
        if interrupted():
            return None
        if len(rewards) == MOST_STEPS and gymnasium.spec(task_name(env)).max_episode_steps is None:
            raise TrainingError(
                f"{task_name(env)} has no time limit and an evaluation episode has not ended after {MOST_STEPS} steps; "
                "register the task with max_episode_steps"
            )
        if film is not None:
            film.write(env.render())
        actions.append(policy(observations[-1]))
        observation, reward, terminated, truncated, _ = env.step(actions[-1])
        observations.append(observation.astype(np.float32))
        rewards.append(float(reward))
        over = terminated or truncated
    if film is not None:
        film.write(env.render())
    actions.append(policy(observations[-1]))
    return Trajectory(
        observations=np.stack(observations),
        actions=np.stack(actions),
        rewards=tuple(rewards),
        terminated=bool(terminated),
    )


def torch_policy(act: Callable[[torch.Tensor], torch.Tensor], device: torch.device) -> Policy:
    """A policy for `evaluate` from a function of tensors."""

    def policy(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return act(torch.as_tensor(observation, device=device)).cpu().numpy()

    return policy
