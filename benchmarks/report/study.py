"""What the results compare with what: the algorithms of a setting, and an algorithm with its ablations."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from benchmarks.experiments.results import Results
from benchmarks.report.errors import ReportError
from benchmarks.report.runs import Cell, Floats, Run, Setting, runs_of
from benchmarks.report.scores import LEVEL, Budget, Unit, common_budget, interactions_to, score, untrained_return
from benchmarks.report.statistics import Indices, draw, iqm

REFERENCE = "dst"
"""Variant that the others are held against unless another is named."""
ABLATION_MARK = ", "
"""Between the name of an algorithm and what is changed in it."""
ALSO_ALGORITHMS = ("max-sliced",)
"""Changes that are compared with the other algorithms too."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variants in one setting, at budgets that all of them have."""

    setting: Setting
    runs: Mapping[str, tuple[Run, ...]]
    """Of each variant, those that count; the reference first."""
    untrained: float
    """Mean return at step 0 over all runs of the setting."""

    @property
    def variants(self) -> tuple[str, ...]:
        """Those with a run that counts."""
        return tuple(self.runs)

    def cell(self, variant: str) -> Cell:
        """Key of its draws."""
        return Cell(self.setting, variant)

    @cached_property
    def steps(self) -> Budget:
        """Interactions that every finished run has made."""
        return common_budget("steps", self._all)

    @cached_property
    def seconds(self) -> Budget:
        """Computing time that every finished run has had."""
        return common_budget("seconds", self._all)

    def budget(self, unit: Unit) -> Budget:
        """`steps` or `seconds`."""
        return self.steps if unit == "steps" else self.seconds

    @property
    def _all(self) -> list[Run]:
        return [run for runs in self.runs.values() for run in runs]

    @cached_property
    def scores(self) -> dict[str, Floats]:
        """Of each variant's runs at equal interactions, (n,)."""
        return self.scores_within(self.steps)

    def scores_within(self, budget: Budget) -> dict[str, Floats]:
        """Of each variant's runs, (n,)."""
        return {
            variant: np.array([score(run, budget, untrained=self.untrained) for run in runs])
            for variant, runs in self.runs.items()
        }

    @cached_property
    def best(self) -> float:
        """The highest interquartile mean at equal interactions."""
        return max(float(iqm(scores)) for scores in self.scores.values())

    @property
    def learned(self) -> bool:
        """Whether any variant did better than untrained, without which nothing can be normalised."""
        return self.best > self.untrained

    def normalised(self, variant: str, budget: Budget | None = None) -> Floats:
        """Scores within the budget, with 0 at the untrained return and 1 at the best interquartile mean at equal interactions, (n,).

        Args:
            variant: whose.
            budget: equal interactions unless given.
        """
        scores = self.scores if budget is None else self.scores_within(budget)
        return (scores[variant] - self.untrained) / (self.best - self.untrained)

    @property
    def level(self) -> float:
        """Return that counts as learned."""
        return self.untrained + LEVEL * (self.best - self.untrained)

    @cached_property
    def interactions(self) -> dict[str, Floats]:
        """Steps of each variant's runs to the level, infinite where it is not reached within equal interactions, (n,)."""
        return {
            variant: np.array([interactions_to(self.level, run, steps=self.steps.limit) for run in runs])
            for variant, runs in self.runs.items()
        }


@dataclass(frozen=True, kw_only=True)
class Study:
    """All comparisons that the results allow."""

    reference: str
    results: Results
    runs: tuple[Run, ...]
    algorithms: tuple[Comparison, ...]
    """In every setting, all variants but ablations."""
    ablations: tuple[Comparison, ...]
    """In every setting, an algorithm (first) and the variants that change something in it."""
    not_compared: tuple[tuple[Setting, str], ...]
    """Settings without a comparison, and why."""
    draws: Mapping[Cell, Indices]

    @cached_property
    def peers(self) -> tuple[str, ...]:
        """What the reference is compared with, in order."""
        names = {variant for comparison in self.algorithms for variant in comparison.variants} - {self.reference}
        return tuple(sorted(names, key=self.order))

    @cached_property
    def variants(self) -> tuple[str, ...]:
        """All of the results, in order."""
        return tuple(sorted({run.cell.variant for run in self.runs}, key=self.order))

    def order(self, variant: str) -> tuple[bool, bool, str]:
        """The reference first, then its own changes, then others by name."""
        return _order(variant, self.reference)


def _order(variant: str, reference: str) -> tuple[bool, bool, str]:
    return variant != reference, not variant.startswith(reference + ABLATION_MARK), variant


def study_of(results: Results, *, reference: str) -> Study:
    """Group runs into comparisons.

    Raises:
        ReportError: if there is nothing to compare, or no run of the reference.
    """
    runs = runs_of(results)
    names = sorted({run.cell.variant for run in runs})
    if reference not in names:
        raise ReportError(
            f"the results hold no variant {reference!r}; name another with --reference: {', '.join(names)}"
        )
    settings = sorted({run.cell.setting for run in runs}, key=lambda setting: setting.order)
    algorithms: list[Comparison] = []
    ablations: list[Comparison] = []
    not_compared: list[tuple[Setting, str]] = []
    for setting in settings:
        here = [run for run in runs if run.cell.setting == setting]
        untrained = untrained_return(here)
        if math.isnan(untrained):
            not_compared.append((setting, "no run was evaluated at step 0, from which scores are counted"))
            continue
        counted = _counted(here, reference)
        groups = [(algorithms, [name for name in counted if is_algorithm(name, reference)])]
        for base in sorted({base_of(name) for name in counted} - {""}):
            changes = [name for name in counted if base_of(name) == base]
            if base in counted:
                groups.append((ablations, [base, *changes]))
            else:
                not_compared.append((setting, f"no run of {base} counts there to compare with {'; '.join(changes)}"))
        for comparisons, group in groups:
            if any(run.status == "finished" for name in group for run in counted[name]):
                chosen = {name: counted[name] for name in group}
                comparisons.append(Comparison(setting=setting, runs=chosen, untrained=untrained))
            else:
                not_compared.append((setting, f"no run of {'; '.join(group) or 'an algorithm'} finished there"))
    compared = {(c.cell(name), len(members)) for c in algorithms + ablations for name, members in c.runs.items()}
    if not compared:
        raise ReportError("no setting can be compared: " + "; ".join(f"{where}: {why}" for where, why in not_compared))
    return Study(
        reference=reference,
        results=results,
        runs=runs,
        algorithms=tuple(algorithms),
        ablations=tuple(ablations),
        not_compared=tuple(not_compared),
        draws=draw(dict(sorted(compared))),
    )


def _counted(runs: Iterable[Run], reference: str) -> dict[str, tuple[Run, ...]]:
    cells: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (_order(run.cell.variant, reference), run.seed)):
        if not run.why_left_out:
            cells.setdefault(run.cell.variant, []).append(run)
    return {variant: tuple(members) for variant, members in cells.items()}


def base_of(variant: str) -> str:
    """The algorithm that an ablation changes; empty for what is no ablation."""
    base, mark, _ = variant.partition(ABLATION_MARK)
    return base if mark else ""


def is_algorithm(variant: str, reference: str) -> bool:
    """Whether it is compared with the algorithms."""
    change = variant.partition(ABLATION_MARK)[2]
    return not base_of(variant) or change in ALSO_ALGORITHMS or variant == reference
