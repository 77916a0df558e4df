"""dst-train and its run directory: it learns nothing wrong from interruptions, damage or other people's checkpoints."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dst_core.checkpoint import CHECKPOINT_FILE, load_checkpoint
from dst_core.config import AgentConfig, TrainConfig
from dst_core.errors import DivergedError, TrainingError
from dst_core.evaluate import evaluation_seeds
from dst_core.run import Run, choose_device
from dst_core.train import EPISODES_PER_SEED, train
from sim_bridge.tasks import TaskError

SMALL = AgentConfig(hidden=16, noise_size=4, latent=2, samples=3)


def config(out: Path, **changes: object) -> TrainConfig:
    choices = {
        "env": "InvertedPendulum-v5",
        "steps": 60,
        "warmup_steps": 40,
        "batch": 16,
        "evaluation_episodes": 2,
        "evaluate_every": 50,
        "forecast_updates": 5,
        "device": "cpu",
        "agent": SMALL,
        "out": out,
    }
    return TrainConfig(**{**choices, **changes})


def tensors(out: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(out, torch.device("cpu"))[0]


def command(out: Path, *more: str) -> list[str]:
    small = ["--agent.hidden", "16", "--agent.samples", "3", "--batch", "16", "--evaluation-episodes", "1"]
    task = ["--env", "InvertedPendulum-v5", "--warmup-steps", "40", "--evaluate-every", "100000", "--device", "cpu"]
    return [sys.executable, "-m", "dst_core.train", *task, *small, "--out", str(out), *more]


def test_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert train(config(tmp_path / name, seed=seed)) == 0
    a, b, c = (tensors(tmp_path / name) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["agent.actor.layers.0.weight"], c["agent.actor.layers.0.weight"])


def test_run_writes_configuration_evaluations_and_tensorboard_logs(tmp_path: Path) -> None:
    train(config(tmp_path, perturb=("actuation=0.1",)))
    assert json.loads((tmp_path / "config.json").read_text())["perturb"] == ["actuation=0.1"]
    evaluations = json.loads((tmp_path / "evaluations.json").read_text())
    assert [entry["step"] for entry in evaluations] == [0, 50, 60]
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_evaluation_seeds_are_never_those_of_training() -> None:
    last_of_training = (
        TrainConfig(env="InvertedPendulum-v5", seed=1999).seed * EPISODES_PER_SEED + EPISODES_PER_SEED - 1
    )
    assert min(evaluation_seeds(10)) > last_of_training


def test_resumed_run_continues_to_more_steps(tmp_path: Path) -> None:
    train(config(tmp_path))
    before = tensors(tmp_path)
    assert train(config(tmp_path, steps=80, resume=True)) == 0
    after = tensors(tmp_path)
    assert int(after["replay.added"]) == 80
    assert torch.equal(after["replay.observation"][:60], before["replay.observation"])
    assert not torch.equal(after["agent.actor.layers.0.weight"], before["agent.actor.layers.0.weight"])


def test_restored_run_equals_the_saved_one_in_every_tensor(tmp_path: Path) -> None:
    train(config(tmp_path))
    run = Run.start(config(tmp_path), torch.device("cpu"))
    run.restore(tmp_path)
    (tmp_path / "copy").mkdir()
    run.save(tmp_path / "copy")
    saved, copied = tensors(tmp_path), tensors(tmp_path / "copy")
    assert saved.keys() == copied.keys()
    assert all(torch.equal(saved[name], copied[name]) for name in saved)


def test_interruption_saves_and_resume_finishes(tmp_path: Path) -> None:
    out = tmp_path / "run"
    whole = command(out, "--steps", "120", "--forecast-updates", "5")
    process = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    assert "evaluation return" in first, first
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 130, rest
    assert "--resume" in rest
    assert "Traceback" not in rest
    assert int(tensors(out)["replay.added"]) < 120
    resumed = subprocess.run([*whole, "--resume"], check=False, capture_output=True, text=True, timeout=120)
    assert resumed.returncode == 0, resumed.stderr
    assert int(tensors(out)["replay.added"]) == 120


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "InvertedPendulm-v5"], "InvertedPendulum-v5"),
        (["--env", "CartPole-v1"], "must be a flat Box"),
        (["--perturb", "actuaton=0.1"], "actuation"),
        (["--seed", "-1"], "seed must lie in 0..1999"),
        (["--agent.truncate", "1.5"], "truncate must lie in"),
    ],
)
def test_bad_arguments_get_one_line_and_exit_code_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    arguments = command(tmp_path / "run", "--steps", "50", *arguments)
    done = subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA, so demanding it is fine")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(TrainingError, match="--device auto or cpu"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_training_runs_on_cuda(tmp_path: Path) -> None:
    assert train(config(tmp_path, device="cuda")) == 0


def test_existing_run_is_not_overwritten(tmp_path: Path) -> None:
    train(config(tmp_path))
    before = (tmp_path / CHECKPOINT_FILE).read_bytes()
    with pytest.raises(TrainingError, match="--resume"):
        train(config(tmp_path))
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == before


def test_checkpoint_of_another_task_is_refused_with_the_difference(tmp_path: Path) -> None:
    train(config(tmp_path))
    with pytest.raises(TrainingError, match="env was InvertedPendulum-v5, now Pendulum-v1"):
        train(config(tmp_path, env="Pendulum-v1", resume=True))


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_checkpoint_is_refused(tmp_path: Path, keep: int) -> None:
    train(config(tmp_path))
    path = tmp_path / CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TrainingError, match="damaged"):
        train(config(tmp_path, steps=70, resume=True))


def test_resume_without_a_run_says_how_to_start(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="leave --resume out"):
        train(config(tmp_path / "none", resume=True))


def test_loss_that_is_not_finite_stops_the_run_and_keeps_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Run.start

    def poisoned(configuration: TrainConfig, device: torch.device) -> Run:
        run = original(configuration, device)
        with torch.no_grad():
            run.agent.critics.critic.head.bias.fill_(torch.nan)
        return run

    monkeypatch.setattr(Run, "start", poisoned)
    with pytest.raises(DivergedError, match="critic_loss is not finite at step 41"):
        train(config(tmp_path))
    assert (tmp_path / CHECKPOINT_FILE).exists()


def test_unknown_task_is_a_task_error(tmp_path: Path) -> None:
    with pytest.raises(TaskError):
        train(config(tmp_path, env="NoSuchTask-v9"))
