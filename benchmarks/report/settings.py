"""The variants of each setting, at equal interactions and at equal computing time."""

from collections.abc import Iterable

import numpy as np

from benchmarks.report.markdown import number, table, with_interval
from benchmarks.report.runs import Cell
from benchmarks.report.scores import Budget, bias, spent_within
from benchmarks.report.statistics import Estimate, estimate, iqm, spread
from benchmarks.report.study import Comparison, Study


def setting_tables(study: Study) -> str:
    """Every comparison of algorithms at equal interactions and at equal computing time, by environment."""
    parts = [
        (
            "Returns are IQM (95 % interval), in bold the highest. First at equal interactions, with spread, critic bias and CPU seconds; "
            "then at equal computing time, with the environment steps made in it (mean over seeds)."
        )
    ]
    environment = ""
    for comparison in study.algorithms:
        if comparison.setting.environment != environment:
            environment = comparison.setting.environment
            parts.append(f"### {environment}")
        parts += [f"#### {environment}, {comparison.setting.perturbation}", _table(study, comparison)]
    return "\n\n".join(parts)


def scores_of(study: Study, comparison: Comparison, variant: str, budget: Budget) -> Estimate:
    """Interquartile mean over a variant's runs within the budget."""
    scores = comparison.scores_within(budget)[variant]
    return estimate(iqm, [scores], [study.draws[Cell(comparison.setting, variant)]])


def seeds(comparison: Comparison, variant: str) -> str:
    """How many count; marked where other variants of the comparison have more."""
    count, most = len(comparison.runs[variant]), max(map(len, comparison.runs.values()))
    return str(count) if count == most else f"{count} of {most}"


def _table(study: Study, comparison: Comparison) -> str:
    steps, seconds = comparison.steps, comparison.seconds
    within = f"{number(seconds.limit)} CPU s"
    rows = [
        [
            variant,
            seeds(comparison, variant),
            _score(study, comparison, variant, steps),
            *_others(comparison, variant),
            _score(study, comparison, variant, seconds),
            number(_mean(spent_within(run, seconds, "steps") for run in runs), scale=1e3),
        ]
        for variant, runs in comparison.runs.items()
    ]
    header = [
        "variant",
        "seeds",
        f"return at {steps.limit:.0f} steps",
        "spread",
        "critic bias",
        "CPU s",
        f"return within {within}",
        "steps made",
    ]
    return f"Before training: {number(comparison.untrained)}.\n\n{table(header, rows)}"


def _score(study: Study, comparison: Comparison, variant: str, budget: Budget) -> str:
    text = with_interval(scores_of(study, comparison, variant, budget))
    all_scores = comparison.scores_within(budget)
    best = max(float(iqm(scores)) for scores in all_scores.values())
    return f"**{text}**" if float(iqm(all_scores[variant])) == best and len(all_scores) > 1 else text


def _others(comparison: Comparison, variant: str) -> list[str]:
    runs, budget = comparison.runs[variant], comparison.steps
    told = [value for value in (bias(run, budget) for run in runs) if not np.isnan(value)]
    return [
        number(float(spread(comparison.scores[variant]))),
        number(_mean(told)),
        number(_mean(spent_within(run, budget, "seconds") for run in runs if budget.covered_by(run.curve))),
    ]


def _mean(values: Iterable[float]) -> float:
    numbers = np.array(list(values), dtype=np.float64)
    return float(numbers.mean()) if len(numbers) else float("nan")
