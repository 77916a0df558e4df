"""The rows of an experiment as they grow."""

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.record import Row
from benchmarks.experiments.results import (
    CURVES_FILE,
    CURVES_SCHEMA,
    RESULTS_FILE,
    RESULTS_SCHEMA,
    Results,
    no_results,
    read_results,
    write_results,
)


def kept_results(out: Path) -> Results:
    """The tables in a directory, empty where there is none.

    Raises:
        ExperimentError: if they cannot be read, or one of the two is missing.
    """
    there = [name for name in (RESULTS_FILE, CURVES_FILE) if (out / name).exists()]
    if len(there) == 1:
        raise ExperimentError(
            f"{out} has {there[0]} alone, without the other of {RESULTS_FILE} and {CURVES_FILE}; restore that, or remove this one too"
        )
    return read_results(out) if there else no_results()


class Tables:
    """Both tables by run, written as a whole."""

    def __init__(self, kept: Results) -> None:
        self._runs: dict[str, Row] = {row["run"]: row for row in kept.runs.iter_rows(named=True)}
        self._curves: dict[str, list[Row]] = {}
        for row in kept.curves.iter_rows(named=True):
            self._curves.setdefault(row["run"], []).append(row)

    def put(self, row: Row, curve: Sequence[Row]) -> None:
        """Add a run, or replace what was known of it."""
        self._runs[row["run"]] = row
        self._curves[row["run"]] = list(curve)

    def latest_returns(self) -> dict[str, float]:
        """Mean return of the last evaluation, by run, where it is finite."""
        return {
            run: curve[-1]["return_mean"]
            for run, curve in self._curves.items()
            if curve and curve[-1]["return_mean"] is not None
        }

    def write(self, out: Path) -> None:
        """Write all rows.

        Raises:
            ExperimentError: if they cannot be written; the files are then as they were.
        """
        curves = [row for curve in self._curves.values() for row in curve]
        write_results(
            out,
            runs=pl.DataFrame([*self._runs.values()], schema=RESULTS_SCHEMA),
            curves=pl.DataFrame(curves, schema=CURVES_SCHEMA),
        )
