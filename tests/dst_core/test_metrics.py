"""The machine-readable log of a run, and the early warning that is written to it."""

import json
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dst_core.early_warning import MEMORY, EarlyWarning
from dst_core.metrics import METRICS_FILE, Metrics


def lines(directory: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (directory / METRICS_FILE).read_text().splitlines()]


@pytest.fixture
def passing_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves on by a second whenever it is read: TensorBoard orders its files by the second they were begun in."""
    now = time.time()

    def read() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(time, "time", read)


def test_every_line_is_on_the_disk_at_once_with_step_kind_and_numbers(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, step=0, size=0)
    metrics.write("evaluation", 5, return_mean=1.5, returns=(1.0, 2.0))
    (line,) = lines(tmp_path)
    assert line.pop("time") > 1e9
    assert line == {"step": 5, "kind": "evaluation", "return_mean": 1.5, "returns": [1.0, 2.0]}
    metrics.write("warning", 6, message="no")
    metrics.write("update", 7, loss=float("nan"), missing=None)
    assert [line["kind"] for line in lines(tmp_path)] == ["evaluation", "warning", "update"]
    assert (lines(tmp_path)[2]["loss"], lines(tmp_path)[2]["missing"]) == (None, None)
    metrics.close()


def test_lines_beyond_the_checkpoint_and_torn_ones_are_dropped(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path, step=0, size=0)
    metrics.write("update", 1, loss=1.0)
    kept = metrics.size
    metrics.write("update", 2, loss=2.0)
    metrics.close()
    again = Metrics(tmp_path, step=1, size=kept)
    again.write("update", 2, loss=3.0)
    again.close()
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(1, 1.0), (2, 3.0)]
    torn = Metrics(tmp_path, step=2, size=again.size - 4)
    torn.write("update", 2, loss=4.0)
    torn.close()
    assert [line["loss"] for line in lines(tmp_path)] == [1.0, 4.0]
    assert torn.size == (tmp_path / METRICS_FILE).stat().st_size


@pytest.mark.usefixtures("passing_seconds")
def test_tensorboard_shows_the_same_numbers_and_keeps_those_of_the_step_resumed_at(tmp_path: Path) -> None:
    first = Metrics(tmp_path, step=0, size=0)
    for step in (1, 2, 3):
        first.write("evaluation", step, return_mean=float(step), returns=(0.0,))
    first.close()
    again = Metrics(tmp_path, step=2, size=first.size)
    again.write("evaluation", 3, return_mean=30.0)
    again.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["evaluation/return_mean"]
    assert [(event.step, event.value) for event in board.Scalars("evaluation/return_mean")] == [(1, 1), (2, 2), (3, 30)]


@pytest.mark.usefixtures("passing_seconds")
def test_run_killed_before_its_first_checkpoint_starts_both_logs_anew(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        metrics = Metrics(tmp_path, step=0, size=0)
        for step in (0, 7):
            metrics.write("evaluation", step, return_mean=value + step)
        metrics.close()
    assert [line["return_mean"] for line in lines(tmp_path)] == [2.0, 9.0]
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("evaluation/return_mean")] == [(0, 2), (7, 9)]


def test_warning_comes_once_when_the_running_mean_passes_five_per_cent() -> None:
    warning = EarlyWarning({})
    share, count = 0.0, 0
    while (line := warning.update(0.5)) is None:
        share += (0.5 - share) / MEMORY
        count += 1
    assert share <= 0.05 < share + (0.5 - share) / MEMORY
    assert count == 10
    assert "--agent.learning-rate" in line
    assert [warning.update(1.0) for _ in range(500)] == [None] * 500


def test_warning_comes_again_only_after_recovery() -> None:
    warning = EarlyWarning({})
    told = [warning.update(share) for share in [1.0] * 10 + [0.0] * 30 + [1.0] * 10]  # falls to 7 %, no recovery
    assert sum(line is not None for line in told) == 1
    told = [warning.update(share) for share in [0.0] * 400 + [1.0] * 10]
    assert sum(line is not None for line in told) == 1


def test_healthy_shares_give_no_warning() -> None:
    warning = EarlyWarning({})
    assert [warning.update(0.04) for _ in range(2000)] == [None] * 2000


def test_warning_goes_on_from_its_state() -> None:
    shares = [0.3] * 40 + [0.0] * 200 + [0.6] * 40
    whole, parts = EarlyWarning({}), EarlyWarning({})
    told, again = [], []
    for share in shares:
        told.append(whole.update(share))
        again.append(parts.update(share))
        parts = EarlyWarning(json.loads(json.dumps(parts.state())))
    assert told == again
    assert sum(line is not None for line in told) == 2
