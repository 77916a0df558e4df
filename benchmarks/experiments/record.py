"""What a run's directory tells: whether it is done, how it ended, and the rows it gives."""

import json
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.experiments.child import SETTING_FILE
from benchmarks.experiments.engines import Ended
from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.grid import GridRun
from benchmarks.experiments.process import LOG_FILE
from benchmarks.experiments.results import CURVES_SCHEMA, Status
from benchmarks.experiments.setting import read_setting
from dst_core.checkpoint import CONFIG_FILE, write_json
from dst_core.errors import TrainingError
from dst_core.metrics import METRICS_FILE
from dst_core.train import INTERRUPTED, TERMINATED

OUTCOME_FILE: Final = "outcome.json"
DIVERGED: Final = 1  # dst-train's exit code
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    status: Status
    error: str
    config: dict[str, Any]
    """The resolved configuration it had."""


def judge(run: GridRun, ended: Ended, directory: Path) -> Outcome | None:
    """How a run ended by what its process left; None if it was interrupted and can go on."""
    if ended.code in (INTERRUPTED, TERMINATED):
        return None
    config = run.config.to_json()
    if ended.code == 0:
        if any(line["step"] == run.config.steps for line in _evaluations(directory)):
            return Outcome(status="finished", error="", config=config)
        error = f"it ended without an evaluation at step {run.config.steps}; look at {LOG_FILE} in its directory"
        return Outcome(status="failed", error=error, config=config)
    if ended.code is None:
        return Outcome(status="failed", error=ended.error, config=config)
    if ended.code < 0:
        error = f"its process was ended by {signal.Signals(-ended.code).name}; the machine may be short of memory"
        return Outcome(status="failed", error=error, config=config)
    error = ended.error or f"exit code {ended.code} without a word"
    return Outcome(status="diverged" if ended.code == DIVERGED else "failed", error=error, config=config)


def keep_outcome(directory: Path, outcome: Outcome) -> None:
    """Write how a run ended into its directory, which is made.

    Raises:
        ExperimentError: if it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / OUTCOME_FILE, vars(outcome))
    except (OSError, TrainingError) as error:
        raise ExperimentError(f"{directory} cannot be written: {error}") from error


def kept_outcome(directory: Path) -> Outcome | None:
    """How the run of a directory ended; None if it has not.

    Raises:
        ExperimentError: if the file was damaged.
    """
    kept = _json(directory / OUTCOME_FILE)
    try:
        return None if kept is None else Outcome(**kept)
    except TypeError as error:
        raise _damaged(directory / OUTCOME_FILE, error) from error


def kept_config(directory: Path) -> dict[str, Any] | None:
    """The resolved configuration of a run that was begun; None if none was.

    Raises:
        ExperimentError: if the file was damaged.
    """
    return _json(directory / CONFIG_FILE)


def rows_of(run: GridRun, outcome: Outcome, directory: Path) -> tuple[Row, list[Row]]:
    """A run's row of `results.parquet` and its rows of `curves.parquet`."""
    name = {
        "run": run.id,
        "environment": run.environment,
        "perturbation": run.perturbation,
        "variant": run.variant,
        "seed": run.config.seed,
    }
    curve = [{column: (line | name).get(column) for column in CURVES_SCHEMA} for line in _evaluations(directory)]
    versions, machine = read_setting(directory / SETTING_FILE)
    row = {
        **name,
        "algorithm": run.config.agent.algorithm,
        "steps": run.config.steps,
        "status": outcome.status,
        "error": outcome.error,
        "updates": curve[-1]["updates"] if curve else 0,
        "cpu_seconds": curve[-1]["cpu_seconds"] if curve else 0.0,
        "command": run.command,
        "config": json.dumps(outcome.config, sort_keys=True),
        "versions": json.dumps(versions),
        "machine": machine,
    }
    return row, curve


def _evaluations(directory: Path) -> Iterator[Row]:
    try:
        lines = (directory / METRICS_FILE).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    for encoded in lines:
        if encoded.endswith(b"\n"):  # a process that was killed may leave half a line
            line = json.loads(encoded)
            if line["kind"] == "evaluation":
                yield line


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"a JSON object was expected, got {type(content).__name__}")
    return content


def _damaged(path: Path, error: object) -> ExperimentError:
    return ExperimentError(f"{path} is damaged ({error}); remove the directory it is in to run this one again")
