"""A local Ray, started and stopped by the experiment, gives what processes of this machine give."""

import importlib
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.results import CURVES_SCHEMA, RESULTS_SCHEMA, read_results
from tests.benchmarks.experiments.grids import (
    SPENT,
    TASKS,
    call,
    has_steps,
    require_reproduced,
    signalled,
    write_grid,
)
from tests.benchmarks.experiments.tasks import RELEASE

pytest.importorskip("ray")
RAY = ("--engine", "ray", "--processes", "2")


def test_ray_gives_the_rows_of_the_local_engine(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call(monkeypatch, mixed / "grid.toml", "--out", tmp_path, *RAY) == 1
    here, there = read_results(mixed / "out"), read_results(tmp_path)
    assert there.runs.select([*RESULTS_SCHEMA.keys() - {SPENT}]).equals(
        here.runs.select([*RESULTS_SCHEMA.keys() - {SPENT}])
    )
    assert there.curves.select([*CURVES_SCHEMA.keys() - {SPENT}]).equals(
        here.curves.select([*CURVES_SCHEMA.keys() - {SPENT}])
    )
    assert (there.runs[SPENT] >= 0).all()
    logs = {path.relative_to(mixed / "out") for path in (mixed / "out").rglob("train.log")}
    assert {path.relative_to(tmp_path) for path in tmp_path.rglob("train.log")} == logs
    assert (tmp_path / "runs" / f"{TASKS}:Crash-v0/none/td3/seed-0/train.log").read_text().count("Traceback") == 1


@pytest.fixture
def node() -> Iterator[Path]:
    """Directory of temporary files with a name short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="node-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.mark.slow
def test_run_interrupted_on_ray_goes_on_elsewhere_to_the_same_numbers(
    node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a node without the disk of the experiment: its directory is first written when the run has been stopped."""
    monkeypatch.setenv(RELEASE, str(tmp_path / "release"))
    monkeypatch.setenv("TMPDIR", str(node))
    grid = write_grid(tmp_path, [f"{TASKS}:Waiting-v0", "Pendulum-v1"], steps=300)
    out, name = tmp_path / "out", f"{TASKS}:Waiting-v0/none/td3/seed-0"

    def is_under_way() -> bool:
        return any(has_steps(path) for path in node.glob("dst-experiment-*/run"))

    with signalled(is_under_way):
        assert call(monkeypatch, grid, "--out", out, "--engine", "ray", "--processes", "1") == 130
    assert "2 not done; the same command goes on" in capsys.readouterr().out
    assert (out / "runs" / name / "checkpoint.safetensors").exists()
    (tmp_path / "release").touch()
    assert call(monkeypatch, grid, "--out", out, "--only", "Waiting", *RAY) == 0
    assert (out / "runs" / name / "train.log").read_text().count("stopped at step") == 1
    require_reproduced(read_results(out), name, tmp_path / "whole")


@pytest.mark.slow
def test_lost_worker_fails_its_own_run_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = write_grid(tmp_path, [f"{TASKS}:Killer-v0", f"{TASKS}:Drift-v0"])
    assert call(monkeypatch, grid, "--out", tmp_path / "out", *RAY) == 1
    status = {row["environment"]: row for row in read_results(tmp_path / "out").runs.iter_rows(named=True)}
    assert status[f"{TASKS}:Drift-v0"]["status"] == "finished"
    killer = status[f"{TASKS}:Killer-v0"]
    assert killer["status"] == "failed"
    assert killer["error"].startswith("Ray lost it: ")


def test_without_ray_its_engine_names_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path, ["PointMass1-v0"])
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "benchmarks.experiments.engines.ray", raising=False)
    assert call(monkeypatch, grid, "--out", tmp_path / "out", *RAY) == 2
    assert "pip install 'dst-policy-server[ray]'" in capsys.readouterr().err
    with pytest.raises(ExperimentError):
        importlib.import_module("benchmarks.experiments.engines.ray")


def test_cluster_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = write_grid(tmp_path, ["PointMass1-v0"])
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # and nothing listens
        address = f"127.0.0.1:{unheard.getsockname()[1]}"
        assert call(monkeypatch, grid, "--out", tmp_path / "out", "--engine", "ray", "--ray-address", address) == 2
    assert f"Ray cannot be reached at {address}: " in capsys.readouterr().err


def test_ray_is_told_to_send_no_statistics() -> None:
    importlib.import_module("benchmarks.experiments.engines.ray")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
