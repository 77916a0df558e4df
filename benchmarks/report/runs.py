"""Runs with their learning curves, as the report reads them."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.experiments.results import UNDISTURBED, Results
from benchmarks.report.errors import ReportError

Floats = NDArray[np.float64]


class Setting(NamedTuple):
    """What is compared only with its own kind: a task and what disturbs it."""

    environment: str
    perturbation: str

    def __str__(self) -> str:
        return f"{self.environment}, {self.perturbation}"

    @property
    def kind(self) -> str:
        """The names of its perturbations, without their strengths."""
        return " + ".join(part.partition("=")[0] for part in self.perturbation.split())

    @property
    def order(self) -> tuple[str, bool, str]:
        """Sorts by task, the undisturbed one first."""
        return self.environment, self.perturbation != UNDISTURBED, self.perturbation


class Cell(NamedTuple):
    """Runs that differ in their seed alone."""

    setting: Setting
    variant: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The evaluations of a run that gave a return, E of them, by step."""

    steps: Floats
    """(E,) environment steps."""
    seconds: Floats
    """(E,) CPU seconds of training until then."""
    returns: Floats
    """(E,) mean return of an evaluation's episodes, in units of reward."""
    bias: Floats
    """(E,) Monte-Carlo return less the critic's mean; NaN where it cannot be told."""

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of the results and its curve."""

    name: str
    cell: Cell
    seed: int
    status: str
    error: str
    curve: Curve
    blank: int
    """Evaluations without a finite return."""

    @property
    def why_left_out(self) -> str:
        """Why it counts in no comparison; empty if it does.

        A run that failed was stopped by something else than learning. One that diverged counts: learning is what stopped it.
        """
        if self.status == "failed":
            return f"failed: {self.error}" if self.error else "failed"
        if self.status == "finished" and not (self.curve.steps > 0).any():
            return "no evaluation after training began gave a finite return"
        return ""


def runs_of(results: Results) -> tuple[Run, ...]:
    """All runs with their curves, in the order of the tables.

    Raises:
        ReportError: if there is no run, one twice, or no evaluation of any.
    """
    if not len(results.runs):
        raise ReportError("the results hold no run; let dst-experiment finish at least one")
    if twice := results.runs.filter(pl.col("run").is_duplicated())["run"].to_list():
        raise ReportError(
            f"the results hold {twice[0]} more than once; run dst-experiment again into an empty directory"
        )
    curves = dict(_curves(results.curves))
    runs = tuple(_run(row, *curves.get(row["run"], (_EMPTY, 0))) for row in results.runs.iter_rows(named=True))
    if not any(len(run.curve) for run in runs):
        raise ReportError("no run has an evaluation with a finite return; look at the column error of the results")
    return runs


_EMPTY = Curve(steps=np.zeros(0), seconds=np.zeros(0), returns=np.zeros(0), bias=np.zeros(0))


def _curves(table: pl.DataFrame) -> list[tuple[str, tuple[Curve, int]]]:
    numbers = table.with_columns(pl.col("return_mean", "critic_bias", "cpu_seconds").fill_null(float("nan")))
    return [(str(name), _curve(rows.sort("step"))) for (name,), rows in numbers.group_by("run", maintain_order=True)]


def _curve(rows: pl.DataFrame) -> tuple[Curve, int]:
    told = rows.filter(pl.col("return_mean").is_finite())
    columns = (
        told[name].to_numpy().astype(np.float64) for name in ("step", "cpu_seconds", "return_mean", "critic_bias")
    )
    steps, seconds, returns, bias = columns
    curve = Curve(steps=steps, seconds=seconds, returns=returns, bias=np.where(np.isfinite(bias), bias, np.nan))
    return curve, len(rows) - len(told)


def _run(row: dict[str, object], curve: Curve, blank: int) -> Run:
    return Run(
        name=str(row["run"]),
        cell=Cell(Setting(str(row["environment"]), str(row["perturbation"])), str(row["variant"])),
        seed=int(str(row["seed"])),
        status=str(row["status"]),
        error=" ".join(str(row["error"]).split()),
        curve=curve,
        blank=blank,
    )
