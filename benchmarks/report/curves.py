"""Learning curves over seeds."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.report.runs import Curve, Floats, Run
from benchmarks.report.statistics import PERCENTILES, iqm
from benchmarks.report.study import Comparison, Study


@dataclass(frozen=True, kw_only=True)
class Band:
    """A variant's returns at the E steps at which all of its finished runs were evaluated."""

    steps: Floats
    """(E,)"""
    seconds: Floats
    """(E,) CPU seconds of training, mean over finished runs."""
    middle: Floats
    """(E,) interquartile mean."""
    low: Floats | None
    """(E,) of the 95 % interval; none of a single run."""
    high: Floats | None

    def at(self, shown: NDArray[np.bool_]) -> "Band":
        """Only the evaluations marked, (E,)."""
        low, high = (None if edge is None else edge[shown] for edge in (self.low, self.high))
        return Band(
            steps=self.steps[shown], seconds=self.seconds[shown], middle=self.middle[shown], low=low, high=high
        )  # fmt: skip


def bands(study: Study, comparison: Comparison) -> dict[str, Band]:
    """Of every variant with a finished run; a run that diverged goes on with what it is scored with."""
    drawn = {}
    for variant, runs in comparison.runs.items():
        finished = [run for run in runs if run.status == "finished"]
        if not finished:
            continue
        steps = np.array(sorted(set.intersection(*(set(run.curve.steps) for run in finished))))
        returns = np.stack([_returns(run, steps, comparison.untrained) for run in runs])
        seconds = np.mean([_at(run.curve, run.curve.seconds, steps) for run in finished], axis=0)
        low = high = None
        if len(runs) > 1:
            replicates = returns[study.draws[comparison.cell(variant)]]
            low, high = np.percentile(iqm(np.moveaxis(replicates, 1, -1)), PERCENTILES, axis=0)
        middle = iqm(returns.T)
        drawn[variant] = Band(steps=steps, seconds=seconds, middle=middle, low=low, high=high)
    return drawn


def _returns(run: Run, steps: Iterable[float], untrained: float) -> Floats:
    known = dict(zip(run.curve.steps, run.curve.returns, strict=True))
    last = run.curve.returns[-1] if len(run.curve) else untrained
    return np.array([known.get(step, min(last, untrained)) for step in steps])


def _at(curve: Curve, values: Floats, steps: Floats) -> Floats:
    return values[np.isin(curve.steps, steps)]
