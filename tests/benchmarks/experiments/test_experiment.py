"""Real runs in real processes: isolated, resumed, stopped, and what their commands reproduce."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console

from benchmarks.experiments.engines.local import LocalEngine
from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.experiment import run_experiment
from benchmarks.experiments.grid import read_grid
from benchmarks.experiments.results import CURVES_FILE, RESULTS_FILE, read_results
from dst_core.checkpoint import load_checkpoint
from tests.benchmarks.experiments.grids import (
    TASKS,
    call,
    has_steps,
    require_reproduced,
    signalled,
    wait_until,
    write_grid,
)
from tests.benchmarks.experiments.tasks import HELPER, RELEASE


def state_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def is_alive(process: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def children_of(process: int) -> list[int]:
    return [child.pid for child in psutil.Process(process).children()]


def test_runs_that_diverge_or_crash_leave_the_others_alone_and_their_rows_behind(mixed: Path) -> None:
    results = read_results(mixed / "out")
    status = {row["environment"].partition(":")[2]: row["status"] for row in results.runs.iter_rows(named=True)}
    assert status == {"NotANumber-v0": "diverged", "Crash-v0": "failed", "Drift-v0": "finished"}
    errors = {row["status"]: row["error"] for row in results.runs.iter_rows(named=True)}
    assert "reward is not finite at step 3" in errors["diverged"]
    assert errors["failed"] == "RuntimeError: the simulator gave up"
    assert errors["finished"] == ""
    assert str(mixed) not in "".join(errors.values())
    lengths = dict(results.curves.group_by("environment").len().iter_rows())
    assert lengths == {f"{TASKS}:NotANumber-v0": 1, f"{TASKS}:Crash-v0": 1, f"{TASKS}:Drift-v0": 3}


def test_command_of_a_row_gives_its_numbers(mixed: Path, tmp_path: Path) -> None:
    require_reproduced(read_results(mixed / "out"), f"{TASKS}:Drift-v0/none/td3/seed-0", tmp_path)


def test_what_is_done_is_not_done_again_with_or_without_directories(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(mixed / "out")
    assert call(monkeypatch, mixed / "grid.toml", "--out", mixed / "out") == 1
    assert state_of(mixed / "out") == before
    for name in (RESULTS_FILE, CURVES_FILE):
        (mixed / "out" / name).unlink()
    assert call(monkeypatch, mixed / "grid.toml", "--out", mixed / "out") == 1
    assert state_of(mixed / "out") == before, "directories give the tables back"
    (mixed / "out" / "runs").rename(mixed / "elsewhere")
    try:
        assert call(monkeypatch, mixed / "grid.toml", "--out", mixed / "out") == 1
        assert not (mixed / "out" / "runs").exists()
        assert call(monkeypatch, mixed / "grid.toml", "--out", mixed / "out", "--only", "Drift") == 0
    finally:
        (mixed / "elsewhere").rename(mixed / "out" / "runs")
    assert {path: content for path, content in state_of(mixed / "out").items() if path.suffix == ".parquet"} == {
        path: content for path, content in before.items() if path.suffix == ".parquet"
    }
    assert "1 of 3 runs finished, 1 diverged, 1 failed" in capsys.readouterr().out


@pytest.mark.slow
def test_retry_begins_a_diverged_run_anew_and_goes_on_with_a_failed_one(
    mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(mixed / "out", out)
    assert call(monkeypatch, mixed / "grid.toml", "--out", out, "--retry") == 1
    assert read_results(out).runs["status"].sort().to_list() == ["diverged", "failed", "finished"]
    diverged, failed = (out / "runs" / f"{TASKS}:{task}-v0/none/td3/seed-0" for task in ("NotANumber", "Crash"))
    assert (diverged / "train.log").read_text().count("is not finite at step 3") == 1
    assert (failed / "train.log").read_text().count("the simulator gave up\n") == 2


def test_dry_run_counts_and_runs_nothing(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state_of(mixed)
    monkeypatch.setenv("COLUMNS", "160")
    assert call(monkeypatch, mixed / "grid.toml", "--out", mixed / "out", "--dry-run", "--retry") == 0
    shown = capsys.readouterr().out
    assert "2 of 3 runs to do, 80 environment steps" in shown
    lines = shown.splitlines()
    assert lines[lines.index(f"{TASKS}:Drift-v0/none") + 1].split() == ["td3", "1", "40", "1"]  # seeds, steps, finished
    assert call(monkeypatch, mixed / "grid.toml", "--out", mixed / "none", "--dry-run") == 0
    assert "3 of 3 runs to do, 120 environment steps" in capsys.readouterr().out
    assert state_of(mixed) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-grid.toml"], "no-such-grid.toml cannot be read"),
        (["GRID", "--only", "Hopper"], "no run has 'Hopper' in its name, such as"),
        (["GRID", "--processes", "0"], "--processes must be at least 1, got 0"),
        (["GRID", "--quick"], "name one grid, such as docs/results/grid.toml, or give --quick"),
        ([], "name one grid"),
        (["GRID", "--ray-address", "10.0.0.1:6379"], "--ray-address needs --engine ray"),
    ],
)
def test_what_cannot_be_run_exits_2_with_the_reason(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grid = write_grid(tmp_path, ["PointMass1-v0"])
    monkeypatch.setenv("COLUMNS", "160")
    named = [str(grid) if argument == "GRID" else argument for argument in arguments]
    try:
        code = call(monkeypatch, *named, "--out", tmp_path / "out")
    except SystemExit as ended:  # what the command line itself refuses
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_experiments_never_share_a_directory(tmp_path: Path) -> None:
    runs = read_grid(write_grid(tmp_path, ["PointMass1-v0"]))

    class Nested(LocalEngine):
        def run(self, jobs: Any) -> Any:
            with pytest.raises(ExperimentError, match="another dst-experiment is at work"):
                run_experiment(runs, out=tmp_path / "out", engine=LocalEngine(1), retry=False, console=Console())
            yield from ()

    outcomes, interrupted = run_experiment(runs, out=tmp_path / "out", engine=Nested(1), retry=False, console=Console())
    assert (outcomes, interrupted) == ({}, None)


def test_interrupted_grid_saves_keeps_what_is_done_and_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(RELEASE, str(tmp_path / "release"))
    grid = write_grid(tmp_path, [f"{TASKS}:Drift-v0", f"{TASKS}:Waiting-v0", "Pendulum-v1"], steps=300)
    out = tmp_path / "out"
    waiting = out / "runs" / f"{TASKS}:Waiting-v0" / "none" / "td3" / "seed-0"
    with signalled(lambda: has_steps(waiting)):
        assert call(monkeypatch, grid, "--out", out, "--processes", "1") == 130
    told = capsys.readouterr().out
    assert "stopping: runs under way save and end" in told
    assert "1 of 3 runs finished, 0 diverged, 0 failed" in told
    assert "2 not done; the same command goes on" in told
    assert read_results(out).runs["environment"].to_list() == [f"{TASKS}:Drift-v0"]
    assert not (out / "runs" / "Pendulum-v1").exists()
    _, progress = load_checkpoint(waiting, torch.device("cpu"))
    assert 0 < progress["step"] < 300
    assert children_of(os.getpid()) == []
    (tmp_path / "release").touch()
    assert call(monkeypatch, grid, "--out", out, "--only", "tasks:") == 0
    assert (waiting / "train.log").read_text().count("stopped at step") == 1
    results = read_results(out)
    assert results.runs["status"].to_list() == ["finished"] * 2
    require_reproduced(results, f"{TASKS}:Waiting-v0/none/td3/seed-0", tmp_path / "whole")


def test_second_interruption_ends_at_once_a_run_that_does_not_save_and_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper = tmp_path / "helper.pid"
    monkeypatch.setenv(HELPER, str(helper))
    grid = write_grid(tmp_path, [f"{TASKS}:Stuck-v0"])
    with (
        signalled(lambda: helper.exists() and helper.read_text() != "", again_after_s=1.1),
        pytest.raises(SystemExit) as ended,
    ):
        call(monkeypatch, grid, "--out", tmp_path / "out")
    assert ended.value.code == 130
    assert children_of(os.getpid()) == []
    wait_until(lambda: not is_alive(int(helper.read_text())), 30)


def test_runs_end_with_a_parent_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RELEASE, str(tmp_path / "release"))
    grid = write_grid(tmp_path, [f"{TASKS}:Waiting-v0"], steps=1000)
    run = tmp_path / "out" / "runs" / f"{TASKS}:Waiting-v0" / "none" / "td3" / "seed-0"
    command = [sys.executable, "-m", "benchmarks.experiments.app", str(grid), "--out", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as parent:
        wait_until(lambda: has_steps(run))
        (child,) = children_of(parent.pid)
        parent.kill()
    wait_until(lambda: not is_alive(child), 30)
    assert "stopped at step" in (run / "train.log").read_text()
