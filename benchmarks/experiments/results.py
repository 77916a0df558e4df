"""The two Parquet tables of an experiment: what every run was and how it ended, and its learning curve.

Both files name the version of their format; one of another version is refused, never guessed at. A run counts once it has a row in
`results.parquet`.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import polars as pl

from benchmarks.experiments.errors import ExperimentError

FORMAT_VERSION: Final = 1
VERSION_KEY: Final = "dst_experiment_format"
RESULTS_FILE: Final = "results.parquet"
CURVES_FILE: Final = "curves.parquet"
RUNS_DIRECTORY: Final = "runs"
"""Beside the tables of an experiment, with a directory for every run."""
Status = Literal["finished", "diverged", "failed"]
UNDISTURBED: Final = "none"

RESULTS_SCHEMA: Final = pl.Schema(
    {
        "run": pl.String(),  # environment/perturbation/variant/seed-N, unique
        "environment": pl.String(),
        "perturbation": pl.String(),  # "none", or "observation=0.2", or "a=1 b=2"
        "variant": pl.String(),  # its name in the grid
        "algorithm": pl.String(),
        "seed": pl.Int64(),
        "steps": pl.Int64(),  # environment steps asked for
        "status": pl.String(),  # see Status
        "error": pl.String(),  # empty if there was none
        "updates": pl.Int64(),  # until the last evaluation
        "cpu_seconds": pl.Float64(),  # of training until the last evaluation, without evaluations
        "command": pl.String(),  # the dst-train command that reproduces the row
        "config": pl.String(),  # JSON: the resolved configuration
        "versions": pl.String(),  # JSON: of Python, the libraries and this project
        "machine": pl.String(),  # processor and cores
    }
)
CURVES_SCHEMA: Final = pl.Schema(
    {
        "run": pl.String(),
        "environment": pl.String(),
        "perturbation": pl.String(),
        "variant": pl.String(),
        "seed": pl.Int64(),
        "step": pl.Int64(),  # environment steps before this evaluation
        "updates": pl.Int64(),
        "cpu_seconds": pl.Float64(),  # of training until then
        "return_mean": pl.Float64(),  # over the episodes of the evaluation, undiscounted
        "return_median": pl.Float64(),
        "return_std": pl.Float64(),
        "return_min": pl.Float64(),
        "critic_bias": pl.Float64(),  # Monte-Carlo return less predicted mean; null where it cannot be told
        "critic_bias_std": pl.Float64(),
    }
)
ORDER: Final = ("environment", "perturbation", "variant", "seed")


@dataclass(frozen=True, kw_only=True)
class Results:
    """The tables of one experiment, ordered by environment, perturbation, variant, seed and step."""

    runs: pl.DataFrame
    """RESULTS_SCHEMA, one row per run."""
    curves: pl.DataFrame
    """CURVES_SCHEMA, one row per evaluation of a run."""


def write_results(directory: Path, *, runs: pl.DataFrame, curves: pl.DataFrame) -> None:
    """Write both tables; a reader sees each as it was or as it is now, never a part.

    Args:
        directory: made where it is missing.
        runs: RESULTS_SCHEMA, in any order.
        curves: CURVES_SCHEMA, in any order.

    Raises:
        ExperimentError: if they cannot be written; the files are then as they were.
        ValueError: if a table does not have its schema.
    """
    _require_schema("runs", runs, RESULTS_SCHEMA)
    _require_schema("curves", curves, CURVES_SCHEMA)
    _write(directory / CURVES_FILE, curves.sort(*ORDER, "step"))  # first: a run counts from its row in the other
    _write(directory / RESULTS_FILE, runs.sort(*ORDER))


def read_results(directory: Path) -> Results:
    """Read both tables.

    Raises:
        ExperimentError: if one is missing, damaged, or of another version, or if they do not belong together.
    """
    runs = _read(directory / RESULTS_FILE, RESULTS_SCHEMA)
    curves = _read(directory / CURVES_FILE, CURVES_SCHEMA)
    curves = curves.join(runs.select("run"), on="run", how="semi")
    finished = runs.filter(pl.col("status") == "finished")
    bare = finished.join(curves, on="run", how="anti")["run"].sort()
    if len(bare):
        raise ExperimentError(
            f"{directory / CURVES_FILE} has no evaluation of {bare[0]}{f' and {len(bare) - 1} more' if len(bare) > 1 else ''}, "
            f"finished according to {RESULTS_FILE}: the two are not of one experiment; restore both, or run it again"
        )
    return Results(runs=runs.sort(*ORDER), curves=curves.sort(*ORDER, "step"))


def no_results() -> Results:
    """Both tables, empty."""
    return Results(runs=pl.DataFrame(schema=RESULTS_SCHEMA), curves=pl.DataFrame(schema=CURVES_SCHEMA))


def _require_schema(name: str, table: pl.DataFrame, schema: pl.Schema) -> None:
    if table.schema != schema:
        raise ValueError(f"{name} must have the columns {_columns(schema)}, got {_columns(table.schema)}")


def _columns(schema: pl.Schema) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in schema.items())


def _write(path: Path, table: pl.DataFrame) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.write_parquet(partial, metadata={VERSION_KEY: str(FORMAT_VERSION)})
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise ExperimentError(
            f"{path} cannot be written ({error}); what it held is unchanged. Make room there, or choose another --out"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _read(path: Path, schema: pl.Schema) -> pl.DataFrame:
    if not path.exists():
        raise ExperimentError(f"{path} is missing; dst-experiment GRID --out {path.parent} makes it")
    try:
        version = pl.read_parquet_metadata(path).get(VERSION_KEY)
        table = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ExperimentError(f"{path} is damaged ({error}); restore it from a copy, or run again") from error
    if version != str(FORMAT_VERSION):
        came = "names none" if version is None else f"is of version {version}"
        raise ExperimentError(
            f"{path} {came}, this program reads version {FORMAT_VERSION} of the format; "
            "read it with the program that wrote it, or run again into another directory"
        )
    if table.schema != schema:
        raise ExperimentError(
            f"{path} must have the columns {_columns(schema)}, got {_columns(table.schema)}; restore it from a copy, or run again"
        )
    return table
