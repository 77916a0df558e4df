"""Which runs of a grid are still to be done, given what a directory already holds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.flags import flatten
from benchmarks.experiments.grid import GridRun
from benchmarks.experiments.record import Outcome, kept_config, kept_outcome
from benchmarks.experiments.results import CURVES_FILE, RESULTS_FILE, RUNS_DIRECTORY, Results

SHOWN: Final = 3


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a directory lacks of a grid."""

    todo: tuple[GridRun, ...]
    """Runs under way first, then by seed, so that a grid cut short has something of every variant."""
    under_way: frozenset[str]
    """Ids of those of `todo` that were begun and not ended."""
    diverged: frozenset[str]
    """Ids of those of `todo` that are to be done again from their first step; a failed one goes on from its checkpoint."""
    done: dict[str, Outcome]
    """The others by id."""
    unwritten: tuple[GridRun, ...]
    """Those of `done` whose outcome is in their directory, whatever the tables say."""


def directory_of(out: Path, run: GridRun) -> Path:
    """Directory of a run."""
    return out / RUNS_DIRECTORY / run.id


def make_plan(runs: Sequence[GridRun], *, out: Path, kept: Results, retry: bool) -> Plan:
    """Compare a grid with a directory: a run's own directory counts, and where it is absent its row.

    Args:
        runs: of the grid.
        out: of the experiment.
        kept: the tables there.
        retry: whether diverged and failed runs are to be done again.

    Raises:
        ExperimentError: if a run of the same id was another configuration's, or a file is damaged.
    """
    rows = {row["run"]: row for row in kept.runs.iter_rows(named=True)}
    conflicts, todo, under_way, diverged, unwritten = [], [], set(), set(), []
    done: dict[str, Outcome] = {}
    for run in runs:
        directory = directory_of(out, run)
        outcome = kept_outcome(directory)
        config = outcome.config if outcome else kept_config(directory)
        if outcome:
            unwritten.append(run)
        elif config is None and (row := rows.get(run.id)):
            outcome = Outcome(status=row["status"], error=row["error"], config=json.loads(row["config"]))
            config = outcome.config
        if config is not None and (differences := _differences(config, run)):
            conflicts.append(f"{run.id}: {differences}")
        if outcome and (outcome.status == "finished" or not retry):
            done[run.id] = outcome
            continue
        if outcome and outcome.status == "diverged":
            diverged.add(run.id)
        if config is not None and not outcome:
            under_way.add(run.id)
        todo.append(run)
    if conflicts:
        raise ExperimentError(_conflict(out, conflicts))
    order = {seed: number for number, seed in enumerate(dict.fromkeys(run.config.seed for run in runs))}
    todo.sort(key=lambda run: (run.id not in under_way, order[run.config.seed]))
    return Plan(
        todo=tuple(todo),
        under_way=frozenset(under_way),
        diverged=frozenset(diverged),
        done=done,
        unwritten=tuple(run for run in unwritten if run.id in done),
    )


def _differences(config: dict[str, Any], run: GridRun) -> str:
    before, now = flatten(config), flatten(json.loads(json.dumps(run.config.to_json())))
    return ", ".join(
        f"{name} was {before.get(name, 'absent')}, now {now.get(name, 'absent')}"
        for name in (before | now)
        if before.get(name, "absent") != now.get(name, "absent")
    )


def _conflict(out: Path, conflicts: list[str]) -> str:
    more = f"\n  and {len(conflicts) - SHOWN} more" if len(conflicts) > SHOWN else ""
    shown = "\n  ".join(conflicts[:SHOWN])
    return (
        f"{out} holds runs of other configurations under the same names; choose another --out, name the variants differently, "
        f"or remove these runs' directories below {out / RUNS_DIRECTORY} and {RESULTS_FILE} and {CURVES_FILE}:\n  {shown}{more}"
    )
