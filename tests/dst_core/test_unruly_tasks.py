"""Tasks that do what Gymnasium allows or its checker alone forbids: nothing is learned from garbage, nothing hangs."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from dst_core import evaluate as evaluate_module
from dst_core.agent_config import AgentConfig
from dst_core.checkpoint import load_checkpoint
from dst_core.config import TrainConfig
from dst_core.episode import Episode
from dst_core.errors import TrainingError
from dst_core.evaluate import evaluate
from dst_core.train import train


class Counter(gymnasium.Env[np.ndarray, np.ndarray]):
    """Counts its steps, where `shares` in the one array that it hands out, and pays `reward` for each."""

    observation_space = Box(-np.inf, np.inf, (1,), np.float64)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, *, reward: float = 1.0, shares: bool = False) -> None:
        self.reward, self.shares = reward, shares
        self.count = np.zeros(1)

    @property
    def state(self) -> np.ndarray:
        return self.count if self.shares else self.count.copy()

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.count[:] = 0
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self.state, self.reward, False, False, {}


@pytest.fixture(autouse=True)
def tasks() -> Iterator[None]:
    gymnasium.register("Counter-v0", Counter, max_episode_steps=20)
    gymnasium.register("Unpaid-v0", Counter, max_episode_steps=20, kwargs={"reward": 0.0})
    gymnasium.register("Unending-v0", Counter)
    yield
    for name in ("Counter-v0", "Unpaid-v0", "Unending-v0"):
        del gymnasium.registry[name]


def still(observation: np.ndarray) -> np.ndarray:
    return np.zeros(1, np.float32)


def test_a_task_that_writes_every_state_into_one_array_is_remembered_state_by_state() -> None:
    env, episode = Counter(shares=True), Episode()
    episode.begin(env, seed=0)
    steps = [episode.step(env, np.zeros(1, np.float32)) for _ in range(3)]
    assert [(float(step.observation[0]), float(step.following[0])) for step in steps] == [(0, 1), (1, 2), (2, 3)]


def test_an_evaluation_of_a_task_that_never_ends_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "MOST_STEPS", 50)
    with pytest.raises(TrainingError, match=r"Unending-v0 has no time limit.*50 steps; register .* max_episode_steps"):
        evaluate(still, environment="Unending-v0", perturbations=(), seeds=(1,))
    assert evaluate(still, environment="Counter-v0", perturbations=(), seeds=(1,)) is not None


STEADY = math.sqrt(sum(((1 - 0.99**k) / 0.01) ** 2 for k in range(1, 21)) / 20)
"""Root mean square of the discounted sums of 20 rewards of 1."""


@pytest.mark.parametrize(("task", "scale"), [("Unpaid-v0", 1.0), ("Counter-v0", STEADY)])
def test_rewards_of_the_warm_up_set_the_unit_of_returns_unless_there_are_none(
    task: str, scale: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(
        env=task,
        out=tmp_path / "run",
        steps=30,
        warmup_steps=20,
        batch=8,
        evaluation_episodes=1,
        evaluate_every=30,
        forecast_updates=1,
        device="cpu",
        agent=AgentConfig(hidden=8, noise_size=2, latent=2, samples=2),
    )
    train(config)
    tensors = load_checkpoint(config.out, torch.device("cpu"))[0]
    found = {name: float(value) for name, value in tensors.items() if name.endswith("return_scale")}
    assert found
    assert all(value == pytest.approx(scale) for value in found.values()), found
    assert ("no reward in the 20 steps of the warm-up" in capsys.readouterr().out) == (task == "Unpaid-v0")
