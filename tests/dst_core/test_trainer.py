"""What the loop of a training run passes on, steps over and stops at."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dst_core.agent import Agent
from dst_core.agent_config import AgentConfig
from dst_core.checkpoint import load_checkpoint
from dst_core.episode import Environment, Episode
from dst_core.errors import DivergedError
from dst_core.evaluate import Evaluation, evaluate
from dst_core.metrics import METRICS_FILE
from dst_core.progress import TrainingProgress
from dst_core.run import Run, load_run
from dst_core.train import train
from dst_core.trainer import Trainer
from dst_core.world_model import Transition
from tests.dst_core.small_run import small_run


def test_imagined_rollouts_and_the_fit_that_follows_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    track = TrainingProgress._track

    def noted(progress: TrainingProgress, name: str, total: int) -> Iterator[int]:
        done = list(track(progress, name, total))
        shown.append((name, total, len(done)))
        return iter(done)

    monkeypatch.setattr(TrainingProgress, "_track", noted)
    assert train(small_run(tmp_path, agent=AgentConfig(hidden=16, samples=3, discount=0.9))) == 0
    horizon = 44  # ln 0.01 / ln 0.9: what lies beyond weighs less than 1 %
    assert shown == [
        ("world model", 20, 20),
        ("imagined rollouts", horizon, horizon),
        ("evaluation critic", 5, 5),
    ]


def poisoned_at(update: int, parameter: str, monkeypatch: pytest.MonkeyPatch, *, value: float = torch.nan) -> None:
    """Set a parameter of the agent to this value, by default no number, once this update is done."""
    original = Agent.update

    def poisoned(agent: Agent, *arguments: object) -> dict[str, torch.Tensor]:
        info = original(agent, *arguments)
        if agent.updates == update:
            with torch.no_grad():
                agent.get_parameter(parameter).fill_(value)
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
        train(small_run(tmp_path, env=env))


def test_action_that_is_no_number_while_all_parameters_are_is_the_actors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    act = Agent.act
    monkeypatch.setattr(
        Agent, "act", lambda agent, observation: act(agent, observation) + (torch.nan if agent.updates == 5 else 0)
    )
    with pytest.raises(DivergedError, match=r"^the actor's action is not finite at step 45, update 5: \[nan\]; lower"):
        train(small_run(tmp_path))


def test_observation_that_is_no_number_is_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Episode.begin

    def spoiled(episode: Episode, env: Environment, seed: int) -> None:
        begin(episode, env, seed)
        if seed > 3:
            episode.observation[:] = np.nan

    monkeypatch.setattr(Episode, "begin", spoiled)
    with pytest.raises(DivergedError, match=r"^the task's observation is not finite at step .*; look at the task"):
        train(small_run(tmp_path, warmup_steps=20))


def lines(out: Path, kind: str) -> list[dict[str, object]]:
    """What a run wrote of this kind for programs."""
    written = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    return [line for line in written if line["kind"] == kind]


def replayed_ends(out: Path) -> torch.Tensor:
    tensors, _ = load_checkpoint(out, torch.device("cpu"))
    return tensors["replay.terminated"][: int(tensors["replay.added"])]


def test_time_limit_is_no_end_to_bootstrap_over_and_a_fall_is_one(tmp_path: Path) -> None:
    limited, falling = tmp_path / "limited", tmp_path / "falling"
    train(small_run(limited, env="Pendulum-v1", steps=203, warmup_steps=201, evaluate_every=1000))
    assert [line["length"] for line in lines(limited, "episode")] == [200]
    assert float(replayed_ends(limited).sum()) == 0
    train(small_run(falling))
    falls = lines(falling, "episode")
    assert falls
    assert float(replayed_ends(falling).sum()) == len(falls)


@pytest.mark.parametrize("algorithm", ["dst", "mage", "mmd"])
def test_in_the_warm_up_the_world_model_alone_learns_once_a_batch_is_there(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[int] = []
    update_model = Agent.update_model

    def noted(agent: Agent, transition: Transition, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if not agent.updates and agent.model_optimiser is not None:
            learned.append(len(transition.reward))
        return update_model(agent, transition, generator)

    fresh: dict[str, torch.Tensor] = {}
    update = Agent.update

    def first_seen(agent: Agent, *arguments: object) -> dict[str, torch.Tensor]:
        if not agent.updates:
            fresh.update({name: value.clone() for name, value in agent.state_dict().items()})
        return update(agent, *arguments)

    monkeypatch.setattr(Agent, "update_model", noted)
    monkeypatch.setattr(Agent, "update", first_seen)
    choices = AgentConfig(algorithm=algorithm, hidden=16, noise_size=4, latent=2, samples=3)
    run = small_run(tmp_path, updates_per_step=2, agent=choices)
    train(run)
    assert learned == ([] if algorithm == "mmd" else [16] * 2 * (40 - 15))
    begun = dict(Run.start(run, torch.device("cpu")).agent.named_parameters())
    moved = {name.split(".")[0] for name, value in begun.items() if not torch.equal(value, fresh[name])}
    assert moved == (set() if algorithm == "mmd" else {"model"})


def test_every_step_after_the_warm_up_pays_for_its_updates(tmp_path: Path) -> None:
    train(small_run(tmp_path, updates_per_step=3))
    assert load_run(tmp_path).agent.updates == (60 - 40) * 3


@pytest.mark.parametrize("diverging", [True, False])
def test_critics_that_leave_the_returns_that_rewards_allow_are_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, diverging: bool
) -> None:
    """Rewards of 1 allow returns up to 100; the share's running mean over 100 passes 5 % with the sixth actor update, of every second."""
    if diverging:
        poisoned_at(5, HEAD, monkeypatch, value=1e5)
    train(small_run(tmp_path))
    warnings = lines(tmp_path, "warning")
    assert [line["step"] for line in warnings] == ([40 + 16] if diverging else [])
    assert all("an early sign of divergence" in str(line["message"]) for line in warnings)


@pytest.mark.parametrize(("perturb", "known"), [((), True), (("actuation=0.1",), True), (("mass=0.1",), False)])
def test_evaluations_tell_the_error_of_the_models_gradient_where_the_step_is_known(
    tmp_path: Path, perturb: tuple[str, ...], known: bool
) -> None:
    train(small_run(tmp_path, perturb=perturb))
    evaluations = lines(tmp_path, "evaluation")
    assert len(evaluations) == 3
    assert all(("model_gradient_error" in line) == known for line in evaluations)
    assert not known or all(float(line["model_gradient_error"]) > 0 for line in evaluations)


def test_evaluations_use_seeds_that_training_never_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, evaluating = [], []
    begin = Episode.begin

    def noted(episode: Episode, env: Environment, seed: int) -> None:
        training.append(seed)
        begin(episode, env, seed)

    def also_noted(*arguments: object, **choices: object) -> Evaluation | None:
        result = evaluate(*arguments, **choices)
        evaluating.extend(result.seeds)
        return result

    monkeypatch.setattr(Episode, "begin", noted)
    monkeypatch.setattr("dst_core.trainer.evaluate", also_noted)
    train(small_run(tmp_path, seed=7, evaluation_episodes=2))
    assert evaluating == [2_000_000_000, 2_000_000_001] * 3
    assert training == [7_000_000 + episode for episode in range(len(training))]
    assert len(training) > 1
