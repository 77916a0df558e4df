"""What a run is worth within a budget, and what it took to reach a level."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.report.runs import Curve, Floats, Run

Unit = Literal["steps", "seconds"]
"""Environment steps, or CPU seconds of training."""
WINDOW = 3
"""Evaluations that a score averages."""
LEVEL = 0.8
"""Share of the way from the untrained to the best variant's score."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the runs of a comparison may spend."""

    unit: Unit
    limit: float

    def spent(self, curve: Curve) -> Floats:
        """What each evaluation had cost, (E,)."""
        return curve.steps if self.unit == "steps" else curve.seconds

    def covered_by(self, curve: Curve) -> bool:
        """Whether the run was evaluated at the limit or beyond."""
        return bool(len(curve) and self.spent(curve)[-1] >= self.limit)


def common_budget(unit: Unit, runs: Iterable[Run]) -> Budget:
    """The most that every finished run of a comparison has spent at its last evaluation."""
    spent = Budget(unit=unit, limit=math.inf).spent
    return Budget(unit=unit, limit=min(float(spent(run.curve)[-1]) for run in runs if run.status == "finished"))


def untrained_return(runs: Iterable[Run]) -> float:
    """Mean over runs of the return at step 0; NaN if none was evaluated there."""
    returns = [value for run in runs for value in run.curve.returns[run.curve.steps == 0]]
    return float(np.mean(returns)) if returns else math.nan


def scored(curve: Curve, budget: Budget) -> NDArray[np.intp]:
    """Indices of the evaluations that make a score: the last three after step 0 within the budget; that at step 0 if there are none."""
    within = budget.spent(curve) <= budget.limit
    trained = np.flatnonzero(within & (curve.steps > 0))
    return trained[-WINDOW:] if len(trained) else np.flatnonzero(within)[-1:]


def score(run: Run, budget: Budget, *, untrained: float) -> float:
    """Mean return over the scored evaluations.

    A run that diverged within the budget leaves no policy: it gets the untrained return, or its own score where that is lower.
    """
    indices = scored(run.curve, budget)
    own = float(run.curve.returns[indices].mean()) if len(indices) else math.nan
    if run.status == "diverged" and not budget.covered_by(run.curve):
        return untrained if math.isnan(own) else min(own, untrained)
    return own


def bias(run: Run, budget: Budget) -> float:
    """Mean critic bias over the scored evaluations that tell one; NaN if none does."""
    told = run.curve.bias[scored(run.curve, budget)]
    told = told[~np.isnan(told)]
    return float(told.mean()) if len(told) else math.nan


def spent_within(run: Run, budget: Budget, unit: Unit) -> float:
    """Steps or CPU seconds until the last evaluation within the budget; 0 without one."""
    indices = scored(run.curve, budget)
    other = Budget(unit=unit, limit=math.inf)
    return float(other.spent(run.curve)[indices[-1]]) if len(indices) else 0.0


def interactions_to(level: float, run: Run, *, steps: float) -> float:
    """Step of the first evaluation at which the run's score, so far, is at least the level.

    Args:
        level: return.
        run: whose curve.
        steps: later evaluations do not count.

    Returns:
        The step; infinity if the level is not reached within `steps`.
    """
    for step in run.curve.steps[(run.curve.steps > 0) & (run.curve.steps <= steps)]:
        indices = scored(run.curve, Budget(unit="steps", limit=step))
        if run.curve.returns[indices].mean() >= level:
            return float(step)
    return math.inf
