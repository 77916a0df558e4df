"""What the loop of a training run passes on, steps over and stops at."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig
from dst_core.progress import TrainingProgress
from dst_core.train import train

SMALL = AgentConfig(hidden=16, noise_size=4, latent=2, samples=3)


def config(out: Path, **changes: object) -> TrainConfig:
    choices = {
        "env": "InvertedPendulum-v5",
        "steps": 60,
        "warmup_steps": 40,
        "batch": 16,
        "evaluation_episodes": 1,
        "evaluate_every": 50,
        "forecast_updates": 5,
        "device": "cpu",
        "agent": SMALL,
        "out": out,
    }
    return TrainConfig(**{**choices, **changes})


def test_imagined_rollouts_and_the_fit_that_follows_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    track = TrainingProgress._track

    def noted(progress: TrainingProgress, name: str, total: int) -> Iterator[int]:
        done = list(track(progress, name, total))
        shown.append((name, total, len(done)))
        return iter(done)

    monkeypatch.setattr(TrainingProgress, "_track", noted)
    assert train(config(tmp_path, agent=AgentConfig(hidden=16, samples=3, discount=0.9))) == 0
    horizon = 44  # ln 0.01 / ln 0.9: what lies beyond weighs less than 1 %
    assert shown == [("imagined rollouts", horizon, horizon), ("evaluation critic", 5, 5)]
