"""The two tables keep what they are given, and refuse what they cannot vouch for."""

from pathlib import Path

import polars as pl
import pytest

from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.results import (
    CURVES_FILE,
    CURVES_SCHEMA,
    FORMAT_VERSION,
    RESULTS_FILE,
    RESULTS_SCHEMA,
    VERSION_KEY,
    no_results,
    read_results,
    write_results,
)


def run_row(seed: int, **changes: object) -> dict[str, object]:
    return {
        "run": f"Task-v0/none/dst/seed-{seed}",
        "environment": "Task-v0",
        "perturbation": "none",
        "variant": "dst",
        "algorithm": "dst",
        "seed": seed,
        "steps": 100,
        "status": "finished",
        "error": "",
        "updates": 90,
        "cpu_seconds": 1.5,
        "command": "dst-train --env Task-v0",
        "config": "{}",
        "versions": "{}",
        "machine": "a machine",
        **changes,
    }


def curve_row(seed: int, step: int, **changes: object) -> dict[str, object]:
    return {
        "run": f"Task-v0/none/dst/seed-{seed}",
        "environment": "Task-v0",
        "perturbation": "none",
        "variant": "dst",
        "seed": seed,
        "step": step,
        "updates": step,
        "cpu_seconds": step / 100,
        "return_mean": float(step),
        "return_median": 1.0,
        "return_std": 0.0,
        "return_min": -1.0,
        "critic_bias": None,
        "critic_bias_std": None,
        **changes,
    }


def table(rows: list[dict[str, object]], schema: pl.Schema) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schema)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    write_results(
        tmp_path,
        runs=table([run_row(10), run_row(2)], RESULTS_SCHEMA),
        curves=table([curve_row(10, 0), curve_row(2, 100), curve_row(2, 0, critic_bias=0.25)], CURVES_SCHEMA),
    )
    return tmp_path


def test_what_is_written_is_read_in_the_order_of_seeds_and_steps(written: Path) -> None:
    results = read_results(written)
    assert results.runs.rows(named=True) == [run_row(2), run_row(10)]
    assert results.curves.rows(named=True) == [
        curve_row(2, 0, critic_bias=0.25),
        curve_row(2, 100),
        curve_row(10, 0),
    ]
    assert sorted(path.name for path in written.iterdir()) == [CURVES_FILE, RESULTS_FILE]


def test_empty_tables_are_tables(tmp_path: Path) -> None:
    empty = no_results()
    write_results(tmp_path, runs=empty.runs, curves=empty.curves)
    assert read_results(tmp_path).runs.equals(empty.runs)
    assert read_results(tmp_path).curves.schema == CURVES_SCHEMA


@pytest.mark.parametrize("name", [RESULTS_FILE, CURVES_FILE])
@pytest.mark.parametrize(("version", "message"), [("2", "is of version 2"), (None, "names none")])
def test_table_of_another_version_is_refused_by_name(
    name: str, version: str | None, message: str, written: Path
) -> None:
    kept = pl.read_parquet(written / name)
    kept.write_parquet(written / name, metadata={} if version is None else {VERSION_KEY: version})
    with pytest.raises(ExperimentError, match=f"{name} {message}, this program reads version {FORMAT_VERSION}"):
        read_results(written)


@pytest.mark.parametrize("name", [RESULTS_FILE, CURVES_FILE])
def test_missing_or_damaged_table_is_refused(name: str, written: Path) -> None:
    whole = (written / name).read_bytes()
    (written / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ExperimentError, match=f"{name} is damaged"):
        read_results(written)
    (written / name).unlink()
    with pytest.raises(ExperimentError, match=f"{name} is missing; dst-experiment GRID --out"):
        read_results(written)


def test_table_with_other_columns_is_refused_on_both_ways(written: Path) -> None:
    results = read_results(written)
    with pytest.raises(ValueError, match="runs must have the columns run String"):
        write_results(written, runs=results.runs.drop("machine"), curves=results.curves)
    results.runs.drop("machine").write_parquet(written / RESULTS_FILE, metadata={VERSION_KEY: str(FORMAT_VERSION)})
    with pytest.raises(ExperimentError, match="must have the columns"):
        read_results(written)


def test_run_counts_from_its_row_in_results_on(written: Path) -> None:
    results = read_results(written)
    more = pl.concat([results.curves, table([curve_row(3, 0)], CURVES_SCHEMA)])
    write_results(written, runs=results.runs, curves=more)
    assert read_results(written).curves.equals(results.curves)


def test_finished_run_without_a_curve_is_refused_and_a_failed_one_is_not(written: Path) -> None:
    results = read_results(written)
    failed = table([run_row(3, status="failed", error="no")], RESULTS_SCHEMA)
    write_results(written, runs=pl.concat([results.runs, failed]), curves=results.curves)
    assert read_results(written).runs["status"].to_list() == ["finished", "failed", "finished"]
    bare = table([run_row(4), run_row(5)], RESULTS_SCHEMA)
    write_results(written, runs=pl.concat([results.runs, bare]), curves=results.curves)
    with pytest.raises(ExperimentError, match="no evaluation of Task-v0/none/dst/seed-4 and 1 more"):
        read_results(written)


def test_tables_that_cannot_be_written_leave_the_old_ones(written: Path) -> None:
    before = {path: path.read_bytes() for path in written.iterdir()}
    results = read_results(written)
    (written / f"{CURVES_FILE}.partial").mkdir()
    with pytest.raises(ExperimentError, match="cannot be written"):
        write_results(written, runs=results.runs.head(1), curves=results.curves.head(0))
    assert {path: path.read_bytes() for path in before} == before
