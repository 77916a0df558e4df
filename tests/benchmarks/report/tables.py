"""Results made by hand: runs with the returns that a test needs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from benchmarks.experiments.results import CURVES_SCHEMA, RESULTS_SCHEMA, Results

Row = dict[str, Any]


def made_run(
    returns: Mapping[int, float | None],
    *,
    environment: str = "PointMass1-v0",
    perturbation: str = "none",
    variant: str = "dst",
    seed: int = 0,
    status: str = "finished",
    error: str = "",
    seconds_per_step: float = 0.01,
    bias: float | None = 0.0,
) -> tuple[Row, list[Row]]:
    """A row of the results, and its evaluations: step to return."""
    of_run = {
        "run": f"{environment}/{perturbation}/{variant}/seed-{seed}",
        "environment": environment,
        "perturbation": perturbation,
        "variant": variant,
        "seed": seed,
    }
    last = max(returns, default=0)
    row = of_run | {
        "algorithm": variant.partition(",")[0],
        "steps": last,
        "status": status,
        "error": error,
        "updates": last,
        "cpu_seconds": last * seconds_per_step,
        "command": f"dst-train --env {environment} --seed {seed} --steps {last} --agent.algorithm {variant.partition(',')[0]}",
        "config": "{}",
        "versions": json.dumps({"python": "3.11.7", "torch": "2.13.0"}),
        "machine": "a processor, 2 cores",
    }
    evaluations = [
        of_run
        | {"step": step, "updates": step, "cpu_seconds": step * seconds_per_step}
        | {"return_mean": value, "return_median": value, "return_std": 1.0, "return_min": value}
        | {"critic_bias": bias, "critic_bias_std": None}
        for step, value in returns.items()
    ]
    return row, evaluations


def results(runs: Iterable[tuple[Row, list[Row]]]) -> Results:
    """Both tables."""
    rows, evaluations = [], []
    for row, of_run in runs:
        rows.append(row)
        evaluations += of_run
    return Results(
        runs=pl.DataFrame(rows, schema=RESULTS_SCHEMA), curves=pl.DataFrame(evaluations, schema=CURVES_SCHEMA)
    )


def flat(value: float, *, untrained: float = 0.0, steps: Sequence[int] = (500, 1000, 1500, 2000)) -> dict[int, float]:
    """Untrained at step 0, then the value."""
    return {0: untrained, **dict.fromkeys(steps, value)}


def seeds(values: Sequence[float], **of_run: Any) -> list[tuple[Row, list[Row]]]:
    """One flat run per value."""
    return [made_run(flat(value), seed=seed, **of_run) for seed, value in enumerate(values)]
