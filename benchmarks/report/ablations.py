"""What an algorithm loses or gains by one change."""

from collections.abc import Sequence

import numpy as np

from benchmarks.report.aggregate import shared
from benchmarks.report.markdown import NOTHING, number, table, with_interval
from benchmarks.report.runs import Floats
from benchmarks.report.settings import scores_of, seeds
from benchmarks.report.statistics import Estimate, estimate, iqm
from benchmarks.report.study import Comparison, Study, base_of


def iqm_difference(*cells: Floats) -> Floats:
    """Interquartile mean of the first half of the cells less that of the second."""
    half = len(cells) // 2
    return np.asarray(iqm(*cells[:half]) - iqm(*cells[half:]))


def normalised_difference(study: Study, comparisons: Sequence[Comparison], x: str, y: str) -> Estimate | None:
    """Normalised score of x less that of y, over the settings that have both; None where there is none."""
    both = [comparison for comparison in shared(comparisons, x, y) if comparison.learned]
    if not both:
        return None
    cells = [(comparison, variant) for variant in (x, y) for comparison in both]
    return estimate(
        iqm_difference,
        [comparison.normalised(variant) for comparison, variant in cells],
        [study.draws[comparison.cell(variant)] for comparison, variant in cells],
    )


def changes(study: Study) -> list[str]:
    """All ablations that are compared with their algorithm."""
    names = {variant for comparison in study.ablations for variant in comparison.variants if base_of(variant)}
    return sorted(names, key=study.order)


def ablation_tables(study: Study) -> str:
    """Every ablation over all settings, then in each."""
    if not study.ablations:
        return "The results hold none."
    overall = []
    for variant in changes(study):
        difference = normalised_difference(study, study.ablations, variant, base_of(variant))
        count = len([comparison for comparison in shared(study.ablations, variant) if comparison.learned])
        overall.append([variant, str(count), with_interval(difference, scale=1.0) if difference else NOTHING])
    each = [
        [comparison.setting.environment, comparison.setting.perturbation, variant, *_row(study, comparison, variant)]
        for comparison in study.ablations
        for variant in comparison.variants
    ]
    difference_title = "less the algorithm's (95 % interval)"
    return "\n\n".join(
        [
            "Over settings, in normalised scores of the ablation comparison; below 0 the change harms:",
            table(["ablation", "settings", difference_title], overall),
            "In each setting, in returns at equal interactions:",
            table(
                [
                    "environment",
                    "perturbation",
                    "variant",
                    "seeds",
                    "steps",
                    "return, IQM (95 % interval)",
                    difference_title,
                ],
                each,
                left=3,
            ),
        ]
    )


def _row(study: Study, comparison: Comparison, variant: str) -> list[str]:
    base = base_of(variant)
    difference = ""
    if base:
        variants = (variant, base)
        scores = [comparison.scores[name] for name in variants]
        draws = [study.draws[comparison.cell(name)] for name in variants]
        difference = with_interval(estimate(iqm_difference, scores, draws))
    budget = comparison.steps
    score = with_interval(scores_of(study, comparison, variant, budget))
    return [seeds(comparison, variant), number(budget.limit, scale=1e3), score, difference]
