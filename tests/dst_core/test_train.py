"""dst-train and its run directory: it learns nothing wrong from interruptions, damage or other people's checkpoints."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import safe_open

from dst_core.agent import Agent
from dst_core.agent_config import AgentConfig
from dst_core.checkpoint import CHECKPOINT_FILE, CONFIG_FILE, _separate, load_checkpoint, save_checkpoint, write_json
from dst_core.critic import GenerativeCritic
from dst_core.errors import DivergedError, TrainingError
from dst_core.execution import CACHE, can_compile
from dst_core.metrics import METRICS_FILE
from dst_core.progress import TrainingProgress
from dst_core.run import Run, choose_device, load_run
from dst_core.train import main, train
from dst_core.trainer import Trainer
from sim_bridge.tasks import TaskError
from tests.dst_core.commands import call
from tests.dst_core.small_run import small_run


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run of `config`, trained once."""
    out = tmp_path_factory.mktemp("original") / "run"
    assert train(small_run(out)) == 0
    return out


@pytest.fixture
def finished(original: Path, tmp_path: Path) -> Path:
    """A copy of it to go on with, to spoil or to evaluate."""
    return Path(shutil.copytree(original, tmp_path / "finished"))


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(out, torch.device("cpu"))[0]


def metadata(out: Path) -> dict[str, str]:
    with safe_open(out / CHECKPOINT_FILE, framework="pt") as file:
        return file.metadata()


def arguments(out: Path, *more: str) -> list[str]:
    """Of a short `dst-train`."""
    small = ["--agent.hidden", "16", "--agent.samples", "3", "--batch", "16", "--evaluation-episodes", "1"]
    task = ["--env", "InvertedPendulum-v5", "--warmup-steps", "40", "--evaluate-every", "100000", "--device", "cpu"]
    return [*task, *small, "--out", str(out), *more]


def command(out: Path, *more: str) -> list[str]:
    """The same as a process of its own, which takes seconds to import torch: for what only a process can show."""
    return [sys.executable, "-m", "dst_core.train", *arguments(out, *more)]


def test_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path, original: Path) -> None:
    for name, seed in (("again", 0), ("other", 4)):
        assert train(small_run(tmp_path / name, seed=seed)) == 0
    a, b, c = (tensors(out) for out in (original, tmp_path / "again", tmp_path / "other"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["agent.actor.layers.0.weight"], c["agent.actor.layers.0.weight"])


def test_run_writes_configuration_evaluations_and_tensorboard_logs(tmp_path: Path) -> None:
    train(small_run(tmp_path, perturb=("actuation=0.1",)))
    assert json.loads((tmp_path / "config.json").read_text())["perturb"] == ["actuation=0.1"]
    lines = [json.loads(line) for line in (tmp_path / METRICS_FILE).read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    assert [line["step"] for line in evaluations] == [0, 50, 60]
    assert all(line["return_mean"] == sum(line["returns"]) / 2 for line in evaluations)
    for measure in ("return_median", "critic_bias", "model_log_likelihood", "model_observation_error"):
        assert all(isinstance(line[measure], float) for line in evaluations), measure
    episodes = [line for line in lines if line["kind"] == "episode"]
    assert sum(line["length"] for line in episodes) <= 60
    assert all(line["return"] == line["length"] - 1 for line in episodes)  # reward 1 per step but the one that falls
    assert list((tmp_path / "tensorboard").glob("events.*"))


def forecasts(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / METRICS_FILE).read_text().splitlines()]
    return [line for line in lines if line["kind"] == "forecast"]


def test_run_ends_with_both_critics_compared_on_the_same_episodes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(small_run(tmp_path))
    (line,) = forecasts(tmp_path)
    compared = load_run(tmp_path).progress["critics"]
    assert (line["step"], line["updates"], line["episodes"]) == (60, 5, 2)
    for critics in ("training", "evaluation"):
        for measure in ("bias", "bias_std", "coverage"):
            assert line[f"{critics}_{measure}"] == compared[critics][measure]
        assert 0 <= compared[critics]["coverage"] <= 1
    evaluations = [json.loads(text) for text in (tmp_path / METRICS_FILE).read_text().splitlines()]
    *_, last = (found for found in evaluations if found["kind"] == "evaluation")
    assert compared["training"]["bias"] == pytest.approx(last["critic_bias"], abs=0.5)  # from other noise
    assert compared["training"]["bias"] != compared["evaluation"]["bias"]
    shown = capsys.readouterr().out
    for word in ("realised discounted returns of 2", "training critics", "evaluation critic"):
        assert word in shown


def test_evaluate_critic_gives_the_critic_the_run_ended_with_or_a_longer_fit_of_it(finished: Path) -> None:
    first, again = tensors(finished), ["--evaluate-critic", "--out", str(finished)]
    assert call(main, *again, "--forecast-updates", "9") == 0
    longer = tensors(finished)
    changed = {name for name in first if not torch.equal(first[name], longer[name])}
    assert changed
    assert all(name.startswith("forecast.") for name in changed)
    assert call(main, *again, "--forecast-updates", "9") == 0
    assert all(torch.equal(longer[name], value) for name, value in tensors(finished).items())
    assert call(main, *again) == 0
    assert all(torch.equal(first[name], value) for name, value in tensors(finished).items())
    assert [line["updates"] for line in forecasts(finished)] == [5, 9, 9, 5]
    assert train(small_run(finished, steps=80, resume=True)) == 0
    assert [line["step"] for line in forecasts(finished)] == [60, 60, 60, 60, 80]


def test_interrupted_evaluate_critic_leaves_the_run_as_it_was(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, log = ((finished / name).read_bytes() for name in (CHECKPOINT_FILE, METRICS_FILE))
    track = TrainingProgress.track_forecast

    def interrupting(progress: TrainingProgress, total: int) -> Iterator[int]:
        for update in track(progress, total):
            if update == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield update

    monkeypatch.setattr(TrainingProgress, "track_forecast", interrupting)
    assert call(main, "--evaluate-critic", "--out", str(finished)) == 130
    assert (finished / CHECKPOINT_FILE).read_bytes() == checkpoint
    assert (finished / METRICS_FILE).read_bytes() == log
    assert "is as it was" in capsys.readouterr().out


def test_evaluation_critic_that_is_not_finite_is_not_kept(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / CHECKPOINT_FILE).read_bytes()
    fresh = Run.fresh_critic

    def poisoned(run: Run) -> GenerativeCritic:
        critic = fresh(run)
        critic.head.bias.data.fill_(torch.nan)
        return critic

    monkeypatch.setattr(Run, "fresh_critic", poisoned)
    assert call(main, "--evaluate-critic", "--out", str(finished)) == 1
    assert "not finite after 5 updates" in capsys.readouterr().err
    assert (finished / CHECKPOINT_FILE).read_bytes() == before


@pytest.mark.parametrize(
    "case",
    [
        (None, [], "holds no run"),
        ({"agent": AgentConfig(algorithm="td3", hidden=8)}, [], "trained with td3"),
        ({}, ["--forecast-updates", "0"], "forecast_updates must be at least 1, got 0"),
    ],
)
def test_evaluate_critic_refuses_by_name(
    tmp_path: Path,
    original: Path,
    capsys: pytest.CaptureFixture[str],
    case: tuple[dict[str, object] | None, list[str], str],
) -> None:
    changes, more, message = case
    out = tmp_path / "run"
    if changes:
        train(small_run(out, **changes))
    elif changes is not None:
        shutil.copytree(original, out)
    capsys.readouterr()
    assert call(main, "--evaluate-critic", "--out", str(out), *more) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_help_shows_evaluate_critic(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert call(main, "--help") == 0
    assert "--evaluate-critic --out" in capsys.readouterr().out
    assert call(main, "--evaluate-critic", "--help") == 0
    shown = capsys.readouterr().out
    assert "--forecast-updates" in shown
    assert "--agent" not in shown


def test_resumed_run_continues_to_more_steps(finished: Path) -> None:
    before = tensors(finished)
    assert train(small_run(finished, steps=80, resume=True)) == 0
    after = tensors(finished)
    assert int(after["replay.added"]) == 80
    assert torch.equal(after["replay.observation"][:60], before["replay.observation"])
    for fitted in ("agent.actor.layers.0.weight", "forecast.head.weight"):
        assert not torch.equal(after[fitted], before[fitted]), fitted


def test_interrupted_continuation_is_not_exportable(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Trainer._fit_forecast

    def interrupted_fit(trainer: Trainer) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        fit(trainer)

    monkeypatch.setattr(Trainer, "_fit_forecast", interrupted_fit)
    assert train(small_run(finished, steps=80, resume=True)) == 143
    with pytest.raises(TrainingError, match="step 80 of 80 and is not finished"):
        load_run(finished)
    monkeypatch.undo()
    assert train(small_run(finished, steps=80, resume=True)) == 0
    assert load_run(finished).progress["step"] == 80


def test_continuation_killed_before_its_first_checkpoint_is_not_exportable(finished: Path) -> None:
    write_json(finished / CONFIG_FILE, small_run(finished, steps=80).to_json())
    with pytest.raises(TrainingError, match="step 60 of 80 and is not finished"):
        load_run(finished)


def rewrite(out: Path, changes: dict[str, torch.Tensor], **progress: object) -> None:
    """Edit a checkpoint; a progress of None is left out."""
    kept, kept_progress = load_checkpoint(out, torch.device("cpu"))
    progress = {name: value for name, value in {**kept_progress, **progress}.items() if value is not None}
    save_checkpoint(out, {**kept, **changes}, progress)


def test_checkpoint_of_cuda_is_read_and_resumed_on_the_cpu(finished: Path) -> None:
    rewrite(finished, {"generator": torch.zeros(16, dtype=torch.uint8)}, device="cuda")
    first, second = load_run(finished), load_run(finished)
    assert torch.equal(first.generator.get_state(), second.generator.get_state())
    assert not torch.equal(first.generator.get_state(), torch.Generator().manual_seed(0).get_state())
    assert train(small_run(finished, steps=80, resume=True)) == 0


@pytest.mark.parametrize(
    ("changes", "progress", "message"),
    [
        ({}, {"updates": None}, "another version: updates missing"),
        ({}, {"device": None}, "another version: device missing"),
        ({}, {"exploration": {"bit_generator": "MT19937"}}, "does not fit"),
        ({"generator": torch.zeros(16, dtype=torch.uint8)}, {}, "does not fit"),
        ({"optimiser.actor.0.exp_avg": torch.zeros(3)}, {}, "optimiser.actor.0 must fit a parameter"),
        ({"agent.actor.layers.0.weight": torch.zeros(3)}, {}, "does not fit"),
    ],
)
def test_checkpoint_of_another_version_is_refused(
    finished: Path, changes: dict[str, torch.Tensor], progress: dict[str, object], message: str
) -> None:
    rewrite(finished, changes, **progress)
    with pytest.raises(TrainingError, match=message):
        train(small_run(finished, steps=70, resume=True))


def test_restored_run_equals_the_saved_one_in_every_tensor(finished: Path) -> None:
    run = Run.start(small_run(finished), torch.device("cpu"))
    run.restore(finished)
    (finished / "copy").mkdir()
    run.save(finished / "copy")
    saved, copied = tensors(finished), tensors(finished / "copy")
    assert saved.keys() == copied.keys()
    assert all(torch.equal(saved[name], copied[name]) for name in saved)


def test_interruption_saves_and_resume_finishes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    whole = ("--steps", "120", "--forecast-updates", "5")
    process = subprocess.Popen(command(out, *whole), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    assert any("evaluation return" in line for line in process.stdout)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "--resume" in rest
    assert "Traceback" not in rest
    assert int(tensors(out)["replay.added"]) < 120
    assert call(main, *arguments(out, *whole, "--resume")) == 0
    assert int(tensors(out)["replay.added"]) == 120


@pytest.mark.slow  # compiles everything from nothing
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler: there is nothing to interrupt")
def test_ctrl_c_on_a_terminal_while_parts_are_compiled_saves_too(tmp_path: Path) -> None:
    out, empty = tmp_path / "run", {name: str(tmp_path) for name in ("TMPDIR", "XDG_CACHE_HOME")}
    environment = {name: value for name, value in os.environ.items() if name != CACHE} | empty
    process = subprocess.Popen(
        command(out, "--steps", "5000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    compilers = psutil.Process(process.pid)
    deadline = time.monotonic() + 120
    while not any(child.name() == "cc1plus" for child in compilers.children(recursive=True)):
        assert time.monotonic() < deadline, "no compiler was started"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 130, rest
    assert "and saved" in rest
    assert "Traceback" not in rest
    assert int(tensors(out)["replay.added"]) < 5000


@pytest.mark.parametrize(("first", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_same_request_from_terminal_and_parent_still_saves(tmp_path: Path, first: signal.Signals, code: int) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(out, "--steps", "100000"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    assert any("evaluation return" in line for line in process.stdout)
    process.send_signal(first)
    for again in (first, *({signal.SIGINT, signal.SIGTERM} - {first})):
        time.sleep(0.1)
        process.send_signal(again)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == code, rest
    assert "and saved" in rest
    assert json.loads(metadata(out)["progress"])["evaluations"]


@contextlib.contextmanager
def full_disk(*, file_size: int) -> Iterator[None]:
    """No file of this process can become larger than this many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [300, 20_000], ids=["at the configuration", "at the first checkpoint"])
def test_full_disk_gets_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], limit: int
) -> None:
    with full_disk(file_size=limit):
        assert call(main, *arguments(tmp_path / "run", "--steps", "50")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Make room" in line
    assert not (tmp_path / "run" / CHECKPOINT_FILE).exists()


def test_full_disk_during_a_resumed_run_leaves_the_checkpoint_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = arguments(out, "--steps", "50", "--forecast-updates", "5")
    assert call(main, *first) == 0
    before = (out / CHECKPOINT_FILE).read_bytes()
    capsys.readouterr()
    more = [*first, "--resume", "--steps", "60"]
    with full_disk(file_size=len(before) - 1):
        assert call(main, *more) == 2
    errors = capsys.readouterr().err
    assert "is unchanged" in errors
    assert "Traceback" not in errors
    assert (out / CHECKPOINT_FILE).read_bytes() == before
    assert {path.name for path in out.iterdir()} == {CONFIG_FILE, CHECKPOINT_FILE, METRICS_FILE, "tensorboard"}
    assert call(main, *more) == 0


def test_directory_below_a_file_gets_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert call(main, *arguments(tmp_path / "file" / "run", "--steps", "50")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "choose an --out that can be written" in line


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_before_training_gets_one_line(
    number: signal.Signals,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("dst_core.train.choose_device", lambda _: os.kill(os.getpid(), number))
    assert call(main, *arguments(tmp_path / "run")) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert "interrupted without saving" in line


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (["--env", "InvertedPendulm-v5"], "InvertedPendulum-v5"),
        (["--env", "CartPole-v1"], "must be a flat Box"),
        (["--perturb", "actuaton=0.1"], "actuation"),
        (["--seed", "-1"], "seed must lie in 0..1999"),
        (["--agent.truncate", "1.5"], "truncate must lie in"),
    ],
)
def test_bad_arguments_get_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bad: list[str], message: str
) -> None:
    assert call(main, *arguments(tmp_path / "run", "--steps", "50", *bad)) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, so demanding it is fine")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(TrainingError, match="--device auto or cpu"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_runs_on_cuda(tmp_path: Path) -> None:
    assert train(small_run(tmp_path, device="cuda")) == 0


def test_existing_run_is_not_overwritten(finished: Path) -> None:
    before = (finished / CHECKPOINT_FILE).read_bytes()
    for _ in range(2):
        with pytest.raises(TrainingError, match="--resume"):
            train(small_run(finished))
        assert (finished / CHECKPOINT_FILE).read_bytes() == before
        (finished / CONFIG_FILE).unlink(missing_ok=True)
    assert train(small_run(finished, steps=70, resume=True)) == 0


def test_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path) -> None:
    write_json(tmp_path / CONFIG_FILE, small_run(tmp_path, seed=5).to_json())
    with pytest.raises(TrainingError, match="leave --resume out"):
        train(small_run(tmp_path, resume=True))
    assert train(small_run(tmp_path)) == 0
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["seed"] == 0


def test_run_killed_before_its_first_evaluation_resumes_to_the_same_end(
    tmp_path: Path, original: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Trainer) -> None:
        raise SystemExit

    monkeypatch.setattr(Trainer, "_evaluate", killed)
    with pytest.raises(SystemExit):
        train(small_run(tmp_path / "killed"))
    monkeypatch.undo()
    assert train(small_run(tmp_path / "killed", resume=True)) == 0
    whole, resumed = tensors(original), tensors(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_checkpoint_of_another_task_is_refused_with_the_difference(finished: Path) -> None:
    with pytest.raises(TrainingError, match="env was InvertedPendulum-v5, now Pendulum-v1"):
        train(small_run(finished, env="Pendulum-v1", resume=True))


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_checkpoint_is_refused(finished: Path, keep: int) -> None:
    path = finished / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingError, match="damaged"):
        train(small_run(finished, steps=70, resume=True))


def test_resume_without_a_run_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="leave --resume out"):
        train(small_run(tmp_path / "none", resume=True))


@pytest.mark.parametrize(
    "case",
    [
        (True, 42, "critic_loss is not finite at step 45, update 5.*checkpoint of step 42", 42),
        (True, 1000, "critic_loss is not finite at step 45.*checkpoint of step 0", 0),
        (
            False,
            45,
            "critics.critic.head.bias is not finite at step 45, update 5.*checkpoint of step 0",
            0,
        ),
    ],
    ids=["after a checkpoint", "before any", "at the checkpoint itself"],
)
def test_diverged_run_keeps_its_last_finite_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: tuple[bool, int, str, int],
) -> None:
    poison_before, checkpoint_every, message, kept = case
    update = Agent.update

    def poisoned(agent: Agent, *arguments: object) -> dict[str, torch.Tensor]:
        info = {} if poison_before else update(agent, *arguments)
        if agent.updates == (4 if poison_before else 5):
            with torch.no_grad():
                agent.critics.critic.head.bias.fill_(torch.nan)
        return update(agent, *arguments) if poison_before else info

    monkeypatch.setattr(Agent, "update", poisoned)
    with pytest.raises(DivergedError, match=message):
        train(small_run(tmp_path, checkpoint_every=checkpoint_every))
    monkeypatch.undo()
    run, diverged = (
        Run.start(small_run(tmp_path, checkpoint_every=checkpoint_every), torch.device("cpu")) for _ in "ab"
    )
    run.restore(tmp_path)
    assert run.progress["step"] == kept
    assert run.not_finite == ()
    diverged.restore(tmp_path / "diverged")
    assert diverged.progress["step"] == 45
    assert "critics.critic.head.bias" in diverged.not_finite
    assert train(small_run(tmp_path, checkpoint_every=checkpoint_every, resume=True)) == 0


def test_checkpoint_copies_only_tensors_that_share_memory(tmp_path: Path) -> None:
    rows = torch.arange(12.0).view(3, 4)
    parts = {"rows": rows, "again": rows, "turned": rows.T, "alone": torch.ones(2)}
    separate = _separate(parts)
    assert separate["rows"].data_ptr() == rows.data_ptr()
    assert separate["alone"].data_ptr() == parts["alone"].data_ptr()
    save_checkpoint(tmp_path, parts, {})
    assert all(torch.equal(value, parts[name]) for name, value in tensors(tmp_path).items())


def test_unknown_task_is_a_task_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError):
        train(small_run(tmp_path, env="NoSuchTask-v9"))
