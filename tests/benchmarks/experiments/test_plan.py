"""What is done and what is left, by the directories of runs and by the rows of tables."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.experiments.engines import Ended
from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.grid import GridRun
from benchmarks.experiments.plan import Plan, directory_of, make_plan
from benchmarks.experiments.record import Outcome, judge, keep_outcome, rows_of
from benchmarks.experiments.results import RESULTS_FILE, read_results
from benchmarks.experiments.setting import read_setting, write_setting
from benchmarks.experiments.tables import Tables, kept_results
from dst_core.checkpoint import CONFIG_FILE, write_json
from dst_core.config import TrainConfig

EVALUATION = {
    "kind": "evaluation",
    "return_mean": 2.0,
    "return_median": 1.5,
    "return_std": 0.5,
    "return_min": 1.0,
    "returns": [1.0, 3.0],
    "time": 0.0,
}


def run_of(seed: int, variant: str = "dst", **choices: Any) -> GridRun:
    config = TrainConfig(env="PointMass1-v0", steps=2000, seed=seed, device="cpu", **choices)
    return GridRun(environment="PointMass1-v0", perturbation="none", variant=variant, config=config)


def outcome_of(run: GridRun, status: str) -> Outcome:
    return Outcome(status=status, error="" if status == "finished" else "no", config=run.config.to_json())


def write_metrics(directory: Path, *lines: dict[str, Any], torn: str = "") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)


def end(run: GridRun, status: str, out: Path) -> None:
    directory = directory_of(out, run)
    write_metrics(directory, {**EVALUATION, "step": 2000, "updates": 1000, "cpu_seconds": 3.0})
    write_json(directory / CONFIG_FILE, run.config.to_json())
    keep_outcome(directory, outcome_of(run, status))


def begin(run: GridRun, out: Path) -> None:
    directory_of(out, run).mkdir(parents=True)
    write_json(directory_of(out, run) / CONFIG_FILE, run.config.to_json())


def plan_of(runs: list[GridRun], out: Path, *, retry: bool = False) -> Plan:
    return make_plan(runs, out=out, kept=kept_results(out), retry=retry)


def test_what_is_left_is_what_is_under_way_and_then_by_seed(tmp_path: Path) -> None:
    runs = [run_of(seed, variant) for variant in ("dst", "td3", "tqc") for seed in (5, 0)]
    end(runs[0], "finished", tmp_path)
    begin(runs[5], tmp_path)
    plan = plan_of(runs, tmp_path)
    assert [run.id.partition("none/")[2] for run in plan.todo] == [
        "tqc/seed-0", "td3/seed-5", "tqc/seed-5", "dst/seed-0", "td3/seed-0",
    ]  # fmt: skip
    assert plan.under_way == {runs[5].id}
    assert plan.done == {runs[0].id: outcome_of(runs[0], "finished")}


@pytest.mark.parametrize("as_rows", [False, True], ids=["directories", "rows"])
def test_diverged_and_failed_runs_are_repeated_only_on_demand(as_rows: bool, tmp_path: Path) -> None:
    runs = [run_of(seed) for seed in range(3)]
    tables = Tables(kept_results(tmp_path))
    for run, status in zip(runs, ("finished", "diverged", "failed"), strict=True):
        end(run, status, tmp_path)
        tables.put(*rows_of(run, outcome_of(run, status), directory_of(tmp_path, run)))
    if as_rows:
        tables.write(tmp_path)
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
    plan = plan_of(runs, tmp_path)
    assert plan.todo == ()
    assert plan.done == {
        run.id: outcome_of(run, status) for run, status in zip(runs, ("finished", "diverged", "failed"), strict=True)
    }
    assert plan.unwritten == (() if as_rows else tuple(runs))
    again = plan_of(runs, tmp_path, retry=True)
    assert (again.todo, again.diverged) == ((runs[1], runs[2]), {runs[1].id})
    assert again.done.keys() == {runs[0].id}


def test_directory_of_a_run_counts_more_than_its_row(tmp_path: Path) -> None:
    run = run_of(0)
    end(run, "failed", tmp_path)
    tables = Tables(kept_results(tmp_path))
    tables.put(*rows_of(run, outcome_of(run, "failed"), directory_of(tmp_path, run)))
    tables.write(tmp_path)
    keep_outcome(directory_of(tmp_path, run), outcome_of(run, "finished"))
    assert plan_of([run], tmp_path).done[run.id].status == "finished"
    (directory_of(tmp_path, run) / "outcome.json").unlink()  # as after an interrupted --retry
    assert plan_of([run], tmp_path).todo == (run,)


@pytest.mark.parametrize("kind", ["finished", "under way", "row"])
def test_other_configuration_under_the_same_name_is_refused(kind: str, tmp_path: Path) -> None:
    before = [run_of(seed, batch=64) for seed in range(5)]
    for run in before:
        (begin if kind == "under way" else end)(run, *(() if kind == "under way" else ("finished",)), tmp_path)
    if kind == "row":
        tables = Tables(kept_results(tmp_path))
        for run in before:
            tables.put(*rows_of(run, outcome_of(run, "finished"), directory_of(tmp_path, run)))
        tables.write(tmp_path)
        (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert len(plan_of(before, tmp_path).done) == (0 if kind == "under way" else 5)
    now = [dataclasses.replace(run, config=dataclasses.replace(run.config, batch=128)) for run in before]
    with pytest.raises(ExperimentError, match="other configurations under the same names") as refused:
        plan_of(now, tmp_path)
    assert str(refused.value).splitlines()[1:] == [
        *(f"  PointMass1-v0/none/dst/seed-{seed}: batch was 64, now 128" for seed in range(3)),
        "  and 2 more",
    ]


def test_damaged_directory_is_named(tmp_path: Path) -> None:
    run = run_of(0)
    end(run, "finished", tmp_path)
    (directory_of(tmp_path, run) / "outcome.json").write_text('{"status": "fini')
    with pytest.raises(ExperimentError, match=r"outcome.json is damaged .* remove the directory it is in"):
        plan_of([run], tmp_path)
    (directory_of(tmp_path, run) / "outcome.json").write_text('{"status": "finished"}')
    with pytest.raises(ExperimentError, match=r"outcome.json is damaged"):
        plan_of([run], tmp_path)


def test_one_table_without_the_other_is_refused(tmp_path: Path) -> None:
    Tables(kept_results(tmp_path)).write(tmp_path)
    (tmp_path / RESULTS_FILE).unlink()
    with pytest.raises(ExperimentError, match=r"curves\.parquet alone"):
        kept_results(tmp_path)


def test_exit_codes_tell_how_a_run_ended(tmp_path: Path) -> None:
    run = run_of(0)

    def status(code: int | None, error: str = "") -> tuple[str, str] | None:
        outcome = judge(run, Ended(run=run.id, code=code, error=error), tmp_path)
        return outcome and (outcome.status, outcome.error)

    assert status(130) is status(143) is None
    assert status(1, "critic_loss is not finite") == ("diverged", "critic_loss is not finite")
    assert status(2, "no room") == ("failed", "no room")
    assert status(70) == ("failed", "exit code 70 without a word")
    assert status(None, "the node is gone") == ("failed", "the node is gone")
    assert status(-9) == ("failed", "its process was ended by SIGKILL; the machine may be short of memory")
    assert status(0) == ("failed", "it ended without an evaluation at step 2000; look at train.log in its directory")
    write_metrics(tmp_path, {**EVALUATION, "step": 1500, "updates": 0, "cpu_seconds": 0.0})
    assert status(0)[0] == "failed"
    write_metrics(tmp_path, {**EVALUATION, "step": 2000, "updates": 0, "cpu_seconds": 0.0})
    assert status(0) == ("finished", "")


def test_rows_are_the_evaluations_of_the_log_without_a_torn_end(tmp_path: Path) -> None:
    run, directory = run_of(4, "a variant"), tmp_path / "run"
    write_metrics(
        directory,
        {**EVALUATION, "step": 0, "updates": 0, "cpu_seconds": 0.0},
        {"kind": "update", "step": 1100, "updates": 100},
        {**EVALUATION, "step": 2000, "updates": 1000, "cpu_seconds": 3.5, "critic_bias": -0.5, "critic_bias_std": 0.1},
        torn='{"kind": "evaluation", "step": 30',
    )
    write_setting(directory / "setting.json")
    row, curve = rows_of(run, outcome_of(run, "diverged"), directory)
    tables = Tables(kept_results(tmp_path))
    tables.put(row, curve)
    tables.write(tmp_path)
    results = read_results(tmp_path)
    versions, machine = read_setting(directory / "setting.json")
    assert results.runs.rows(named=True) == [
        {
            "run": "PointMass1-v0/none/a variant/seed-4",
            "environment": "PointMass1-v0",
            "perturbation": "none",
            "variant": "a variant",
            "algorithm": "dst",
            "seed": 4,
            "steps": 2000,
            "status": "diverged",
            "error": "no",
            "updates": 1000,
            "cpu_seconds": 3.5,
            "command": run.command,
            "config": json.dumps(run.config.to_json(), sort_keys=True),
            "versions": json.dumps(versions),
            "machine": machine,
        }
    ]
    assert {"python", "torch", "numpy", "gymnasium", "mujoco", "dst-policy-server"} == versions.keys()
    assert results.curves.select("step", "updates", "cpu_seconds", "critic_bias").rows() == [
        (0, 0, 0.0, None),
        (2000, 1000, 3.5, -0.5),
    ]
    assert results.curves.select("return_mean", "return_median", "return_std", "return_min").unique().rows() == [
        (2.0, 1.5, 0.5, 1.0)
    ]


def test_run_that_failed_before_its_first_evaluation_has_a_row_all_the_same(tmp_path: Path) -> None:
    run = run_of(0)
    row, curve = rows_of(run, outcome_of(run, "failed"), tmp_path)
    assert (row["updates"], row["cpu_seconds"], row["versions"], row["machine"], curve) == (0, 0.0, "{}", "", [])
    tables = Tables(kept_results(tmp_path))
    tables.put(row, curve)
    tables.write(tmp_path)
    assert read_results(tmp_path).runs.filter(pl.col("status") == "failed").height == 1
