"""Interactions to reach a level, and their ratio to the reference's."""

import functools

import numpy as np

from benchmarks.report.markdown import NOTHING, number, table, with_bounds
from benchmarks.report.statistics import Bounds, estimate_bounds, median_ratio
from benchmarks.report.study import Comparison, Study


def interaction_ratio(study: Study, comparison: Comparison, peer: str) -> Bounds:
    """Median interactions of the reference to the level, as a share of the peer's."""
    statistic = functools.partial(median_ratio, limit=comparison.steps.limit)
    variants = (study.reference, peer)
    return estimate_bounds(
        statistic,
        [comparison.interactions[variant] for variant in variants],
        [study.draws[comparison.cell(variant)] for variant in variants],
    )


def interactions_tables(study: Study) -> str:
    """Medians of every variant in every comparison of algorithms, then ratios."""
    variants = [study.reference, *study.peers]
    medians, ratios = [], []
    for comparison in study.algorithms:
        where = [comparison.setting.environment, comparison.setting.perturbation]
        level = number(comparison.level) if comparison.learned else "nothing learned"
        medians.append([*where, level, *(_median(comparison, variant) for variant in variants)])
        if study.peers:
            ratios.append([*where, *(_ratio(study, comparison, peer) for peer in study.peers)])
    parts = [
        "Median steps to the level, and how many of the runs reached it:",
        table(["environment", "perturbation", "level", *variants], medians, left=2),
    ]
    if ratios:
        title = f"Ratio of medians, {study.reference} to each other variant (95 % interval):"
        parts += [title, table(["environment", "perturbation", *study.peers], ratios, left=2)]
    return "\n\n".join(parts)


def _median(comparison: Comparison, variant: str) -> str:
    if variant not in comparison.runs or not comparison.learned:
        return NOTHING
    interactions = comparison.interactions[variant]
    least = float(np.median(np.minimum(interactions, comparison.steps.limit)))
    text = f"{least:.0f}" if np.isfinite(np.median(interactions)) else f"over {least:.0f}"
    return f"{text}, {np.isfinite(interactions).sum()} of {len(interactions)}"


def _ratio(study: Study, comparison: Comparison, peer: str) -> str:
    both = {study.reference, peer} <= comparison.runs.keys()
    return with_bounds(interaction_ratio(study, comparison, peer)) if both and comparison.learned else NOTHING
