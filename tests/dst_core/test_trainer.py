"""What the loop of a training run passes on, steps over and stops at."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dst_core.agent import Agent
from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig
from dst_core.episode import Environment, Episode
from dst_core.errors import DivergedError
from dst_core.progress import TrainingProgress
from dst_core.train import train
from dst_core.trainer import Trainer

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


def poisoned_at(update: int, parameter: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a parameter of the agent no number once this update is done."""
    original = Agent.update

    def poisoned(agent: Agent, *arguments: object) -> dict[str, torch.Tensor]:
        info = original(agent, *arguments)
        if agent.updates == update:
            with torch.no_grad():
                agent.get_parameter(parameter).fill_(torch.nan)
        return info

    monkeypatch.setattr(Agent, "update", poisoned)


ACTOR, HEAD = "actor.layers.0.bias", "critics.critic.head.bias"


@pytest.mark.parametrize(
    "case",
    [
        ("InvertedPendulum-v5", ACTOR, 5, 1, f"{ACTOR} is not finite at step 45, update 5"),
        ("InvertedPendulum-v5", ACTOR, 10, 1, f"{ACTOR} is not finite at step 50, update 10"),
        ("Pendulum-v1", ACTOR, 10, 1, f"{ACTOR} is not finite at step 50, update 10"),
        ("InvertedPendulum-v5", HEAD, 4, 100, "critic_loss is not finite at step 46, update 5"),
    ],
    ids=["before a step", "before an evaluation", "of a task that fails there", "in losses not yet read"],
)
def test_divergence_is_put_down_to_the_part_that_diverged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, int, int, str]
) -> None:
    env, parameter, update, read_every, named = case
    poisoned_at(update, parameter, monkeypatch)
    prepare = Trainer.train

    def reading_seldom(trainer: Trainer) -> None:
        trainer.read_every = read_every
        prepare(trainer)

    monkeypatch.setattr(Trainer, "train", reading_seldom)
    with pytest.raises(DivergedError, match=f"^{re.escape(named)}"):
        train(config(tmp_path, env=env))


def test_action_that_is_no_number_while_all_parameters_are_is_the_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = Agent.act
    monkeypatch.setattr(
        Agent, "act", lambda agent, observation: act(agent, observation) + (torch.nan if agent.updates == 5 else 0)
    )
    with pytest.raises(DivergedError, match=r"^the actor's action is not finite at step 45, update 5: \[nan\]; lower"):
        train(config(tmp_path))


def test_observation_that_is_no_number_is_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Episode.begin

    def spoiled(episode: Episode, env: Environment, seed: int) -> None:
        begin(episode, env, seed)
        if seed > 3:
            episode.observation[:] = np.nan

    monkeypatch.setattr(Episode, "begin", spoiled)
    with pytest.raises(DivergedError, match=r"^the task's observation is not finite at step .*; look at the task"):
        train(config(tmp_path, warmup_steps=20))
