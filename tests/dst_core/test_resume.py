"""A run that is interrupted and resumed gives the numbers of one that is not: every tensor, every evaluation, every line of its log."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from dst_core import trainer
from dst_core.agent import Agent
from dst_core.agent_config import AgentConfig
from dst_core.checkpoint import load_checkpoint
from dst_core.config import TrainConfig
from dst_core.episode import Episode, NotDeterministicError
from dst_core.evaluate import Evaluation, evaluate
from dst_core.progress import TrainingProgress
from dst_core.run import Run
from dst_core.train import train

TAKEN = ("time", "updates_per_s", "cpu_seconds")
LOG_EVERY_UPDATES = 5
TASKS = {
    "InvertedPendulum-v5": (),
    "PendulumSwingUp-v0": ("actuation=0.1", "observation=0.1", "dynamics=0.05"),
}


@pytest.fixture(autouse=True)
def lines_of_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "LOG_EVERY_UPDATES", LOG_EVERY_UPDATES)


def config(out: Path, env: str = "InvertedPendulum-v5", **changes: Any) -> TrainConfig:
    choices: dict[str, Any] = {
        "perturb": TASKS.get(env, ()),
        "steps": 70,
        "warmup_steps": 30,
        "batch": 16,
        "evaluation_episodes": 2,
        "evaluate_every": 25,
        "checkpoint_every": 20,
        "forecast_updates": 6,
        "device": "cpu",
        "agent": AgentConfig(hidden=16, noise_size=4, latent=2, samples=3),
    }
    return TrainConfig(env=env, out=out, **{**choices, **changes})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `config` that nothing interrupts."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as context:
        context.setattr(trainer, "LOG_EVERY_UPDATES", LOG_EVERY_UPDATES)
        assert train(config(out)) == 0
    return out


def interrupt_at(step: int, monkeypatch: pytest.MonkeyPatch, *, kill: bool = False) -> None:
    """Send this process SIGTERM when a step is done, or end it there without a chance to save."""
    show = TrainingProgress.step

    def interrupting(progress: TrainingProgress, done: int) -> None:
        show(progress, done)
        if done == step and kill:
            raise SystemExit
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainingProgress, "step", interrupting)


def interrupt_fit_after(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    track = TrainingProgress.track_forecast

    def interrupting(progress: TrainingProgress, total: int) -> Any:
        for update in track(progress, total):
            if update == updates:
                os.kill(os.getpid(), signal.SIGTERM)
            yield update

    monkeypatch.setattr(TrainingProgress, "track_forecast", interrupting)


def log(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = [line for line in lines if line["kind"] != "forecast" or line["step"] == lines[-1]["step"]]
    return [{name: value for name, value in line.items() if name not in TAKEN} for line in kept]


def evaluations(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "evaluation"]


def require_same(one: Path, other: Path) -> None:
    (a, of_a), (b, of_b) = (load_checkpoint(out, torch.device("cpu")) for out in (one, other))
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    for progress in (of_a, of_b):
        del progress["metrics_size"], progress["cpu_seconds"]  # times differ, in their number of digits too
    assert of_a == of_b
    assert log(one) == log(other)


@pytest.mark.parametrize("env", TASKS)
def test_run_interrupted_five_times_equals_the_uninterrupted_one(
    env: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(config(tmp_path / "whole", env)) == 0
    in_an_episode = 0
    for number, step in enumerate(
        (7, 29, 33, 58)
    ):  # in the warm-up, at its end, after few updates, after an evaluation
        with monkeypatch.context() as context:
            interrupt_at(step, context)
            assert train(config(tmp_path / "parts", env, resume=number > 0)) == 143
        tensors, progress = load_checkpoint(tmp_path / "parts", torch.device("cpu"))
        assert progress["step"] == step
        in_an_episode += len(tensors["episode.actions"]) > 0
    assert in_an_episode >= 3
    with monkeypatch.context() as context:
        interrupt_fit_after(3, context)
        assert train(config(tmp_path / "parts", env, resume=True)) == 143
    assert train(config(tmp_path / "parts", env, resume=True)) == 0
    require_same(tmp_path / "whole", tmp_path / "parts")


def test_evaluations_tell_updates_and_cpu_time_of_all_parts_of_the_run_and_of_training_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that an update moves by a second, an evaluation or a save by a thousand."""
    now_s = 0.0

    def taking(seconds: float, call: Any) -> Any:
        def timed(*arguments: Any, **named: Any) -> Any:
            nonlocal now_s
            now_s += seconds
            return call(*arguments, **named)

        return timed

    monkeypatch.setattr("dst_core.trainer.time.process_time", lambda: now_s)
    monkeypatch.setattr(Agent, "update", taking(1, Agent.update))
    monkeypatch.setattr(Run, "save", taking(1000, Run.save))
    monkeypatch.setattr("dst_core.trainer.evaluate", taking(1000, evaluate))
    with monkeypatch.context() as context:
        interrupt_at(58, context)
        assert train(config(tmp_path)) == 143
    assert train(config(tmp_path, resume=True)) == 0
    told = [(line["step"], line["updates"], line["cpu_seconds"]) for line in evaluations(tmp_path)]
    assert told == [(step, max(0, step - 30), max(0, step - 30)) for step in (0, 25, 50, 70)]


@pytest.mark.parametrize("number", [0, 2, 3], ids=["the first", "one on the way", "the last"])
def test_run_interrupted_in_an_evaluation_leaves_it_at_once_and_makes_up_for_it(
    number: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, before = [], len(log(whole))

    def interrupting(*arguments: Any, **named: Any) -> Evaluation | None:
        begun.append(named)
        if len(begun) == number + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*arguments, **named)

    with monkeypatch.context() as context:
        context.setattr("dst_core.trainer.evaluate", interrupting)
        assert train(config(tmp_path / "parts")) == 143
    assert len(begun) == number + 1
    assert len(log(tmp_path / "parts")) < before
    assert train(config(tmp_path / "parts", resume=True)) == 0
    require_same(whole, tmp_path / "parts")


def test_run_killed_between_checkpoints_equals_the_uninterrupted_one(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        interrupt_at(57, context, kill=True)
        with pytest.raises(SystemExit):
            train(config(tmp_path / "killed"))
    assert log(tmp_path / "killed")[-1]["step"] > 40  # lines beyond the checkpoint
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 57, "kind": "upd')
    assert train(config(tmp_path / "killed", resume=True)) == 0
    require_same(whole, tmp_path / "killed")


def test_run_killed_while_the_evaluation_critic_is_fitted_keeps_its_last_step(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> Any:
        raise SystemExit

    with monkeypatch.context() as context:
        context.setattr(TrainingProgress, "track_forecast", killed)
        with pytest.raises(SystemExit):
            train(config(tmp_path / "killed"))
    _, progress = load_checkpoint(tmp_path / "killed", torch.device("cpu"))
    assert (progress["step"], progress["forecast"]) == (70, False)
    assert train(config(tmp_path / "killed", resume=True)) == 0
    require_same(whole, tmp_path / "killed")


def test_finished_run_that_goes_on_equals_one_that_was_meant_to(tmp_path: Path) -> None:
    train(config(tmp_path / "whole", steps=75))
    train(config(tmp_path / "parts", steps=50))
    assert train(config(tmp_path / "parts", steps=75, resume=True)) == 0
    require_same(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("algorithm", ["td3", "tqc", "mage", "iqn", "mmd"])
def test_every_algorithm_resumes_exactly(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = AgentConfig(algorithm=algorithm, hidden=8, noise_size=4, latent=2, samples=4, quantiles=5)
    choices = {"agent": agent, "steps": 45, "evaluation_episodes": 1}
    train(config(tmp_path / "whole", **choices))
    with monkeypatch.context() as context:
        interrupt_at(37, context)
        assert train(config(tmp_path / "parts", **choices)) == 143
    assert train(config(tmp_path / "parts", resume=True, **choices)) == 0
    require_same(tmp_path / "whole", tmp_path / "parts")


class Walk(gymnasium.Env[Any, Any]):
    """Adds the action up, and noise that no seed restarts where it is told to."""

    def __init__(self, *, noise: float = 0.0, length: int = 10) -> None:
        self.unseeded = np.random.default_rng(0)
        self.noise = noise
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.standard_normal(1), 0
        return self.place.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = self.place + action + self.noise * self.unseeded.standard_normal(1)
        self.steps += 1
        return self.place.copy(), float(self.place[0]), self.steps >= self.length, False, {}


def walked(env: Walk, steps: int) -> Episode:
    episode = Episode()
    episode.begin(env, seed=3)
    for step in range(steps):
        episode.step(env, np.array([0.1 * step], np.float32))
    return episode


def test_episode_is_reached_again_from_its_seed_and_actions() -> None:
    env = Walk()
    episode, again = walked(env, 4), Episode()
    again.load_state(episode.state())
    fresh = Walk()
    again.reach_again(fresh, seed=3)
    assert fresh.place == env.place
    assert (again.reward_sum, again.length) == (episode.reward_sum, 4)
    action = np.array([0.5], np.float32)
    assert again.step(fresh, action) == episode.step(env, action)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Walk(noise=1e-9), "not deterministic: after the same seed .3. and the same 4 actions the observation is"),
        (Walk(length=2), "the episode has ended.*begins anew"),
    ],
    ids=["it leads elsewhere", "it ends early"],
)
def test_task_that_does_not_repeat_itself_begins_its_episode_anew(env: Walk, message: str) -> None:
    episode = walked(Walk(), 4)
    with pytest.raises(NotDeterministicError, match=message):
        episode.reach_again(env, seed=3)
    assert not episode.under_way
    assert env.steps == 0
    assert episode.observation == env.place


def test_task_that_does_not_repeat_itself_is_told_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as context:
        interrupt_at(58, context)
        train(config(tmp_path))
    run = Run.start(config(tmp_path), torch.device("cpu"))
    run.restore(tmp_path)
    assert run.episode.under_way
    run.episode.observation[0] += 1e-12
    run.save(tmp_path)
    assert train(config(tmp_path, resume=True)) == 0
    assert "warning: the task is not deterministic" in capsys.readouterr().out
    (warning,) = [line for line in log(tmp_path) if line["kind"] == "warning"]
    assert warning["step"] == 58
    assert "begins anew" in warning["message"]


def test_evaluation_draws_nothing_from_the_noise_of_the_run(tmp_path: Path) -> None:
    often, seldom = (config(tmp_path / str(every), evaluate_every=every) for every in (10, 70))
    train(often)
    train(seldom)
    a, b = (load_checkpoint(out.out, torch.device("cpu"))[0] for out in (often, seldom))
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
