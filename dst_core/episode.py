"""The training episode under way, kept so small that every checkpoint can hold it.

A task is deterministic given the seed of its reset and the actions that follow (the perturbations draw from streams that the same seed
restarts), so seed and actions are enough to reach any state of an episode again, inside a simulator that cannot be saved itself.
"""

from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Environment = gymnasium.Env[Any, Any]
EPISODES_PER_SEED = 1_000_000


class NotDeterministicError(Exception):
    """The same seed and actions led elsewhere; the message is for the user."""


class Step(NamedTuple):
    """One step of a task."""

    observation: NDArray[Any]
    """(S,)"""
    action: NDArray[np.float32]
    """(A,)"""
    reward: float
    following: NDArray[Any]
    """(S,)"""
    terminated: bool
    over: bool


def episode_seed(run_seed: int, episode: int) -> int:
    """Seed of a training episode; no two runs share one, and evaluations use none of them."""
    return run_seed * EPISODES_PER_SEED + episode


class Episode:
    """What has happened since the last reset."""

    def __init__(self) -> None:
        self.observation: NDArray[Any] = np.empty(0)
        self.reward_sum = 0.0
        self._actions: list[NDArray[np.float32]] = []

    @property
    def under_way(self) -> bool:
        """Whether there is a step to go on from."""
        return bool(self._actions)

    @property
    def length(self) -> int:
        """Steps since the reset."""
        return len(self._actions)

    def begin(self, env: Environment, seed: int) -> None:
        """Reset the task."""
        observation, _ = env.reset(seed=seed)
        self.observation = np.array(observation)  # some tasks write the next one into the same array
        self.reward_sum = 0.0
        self._actions = []

    def step(self, env: Environment, action: NDArray[np.float32]) -> Step:
        """Take one step of the task."""
        observation, reward, terminated, truncated, _ = env.step(action)
        following = np.array(observation)
        step = Step(self.observation, action, float(reward), following, bool(terminated), bool(terminated or truncated))
        self.observation = following
        self.reward_sum += step.reward
        self._actions.append(action)
        return step

    def end(self) -> None:
        """Forget the episode, which is over."""
        self._actions = []

    def reach_again(self, env: Environment, seed: int) -> None:
        """Bring a newly made task to where this episode was, by the same reset and the same actions.

        Raises:
            NotDeterministicError: if that leads elsewhere; the episode has then begun anew.
        """
        reached, actions = self.observation, self._actions
        self.begin(env, seed)
        over = False
        for action in actions:
            if over:
                break
            over = self.step(env, action).over
        if over or not np.array_equal(self.observation, reached):
            difference = f"the observation is {self.observation.tolist()}, it was {reached.tolist()}"
            self.begin(env, seed)
            raise NotDeterministicError(
                f"the task is not deterministic: after the same seed ({seed}) and the same {len(actions)} actions "
                f"{'the episode has ended' if over else difference}. The episode begins anew, so this run will not "
                "repeat an uninterrupted one exactly"
            )

    def state(self) -> dict[str, Tensor]:
        """The actions since the reset, (T, A), and the observation reached, (S,); empty between two episodes."""
        if not self.under_way:
            return {"actions": torch.empty(0), "observation": torch.empty(0)}
        return {
            "actions": torch.from_numpy(np.stack(self._actions)),
            "observation": torch.from_numpy(np.array(self.observation)),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave; `reach_again` brings a task there."""
        self._actions = list(state["actions"].cpu().numpy())
        self.observation = state["observation"].cpu().numpy()
