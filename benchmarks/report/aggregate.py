"""The algorithms over all settings of a kind of perturbation."""

from collections.abc import Sequence
from typing import Final

from benchmarks.report.markdown import NOTHING, table, with_interval
from benchmarks.report.scores import Unit
from benchmarks.report.statistics import Estimate, estimate, improvement, iqm
from benchmarks.report.study import Comparison, Study

ALL = "all"
UNITS: Final[dict[Unit, str]] = {"steps": "interactions", "seconds": "computing time"}


def by_kind(study: Study) -> dict[str, list[Comparison]]:
    """Comparisons of algorithms in which something was learned: all of them if they are of several kinds, and each kind's."""
    learned = [comparison for comparison in study.algorithms if comparison.learned]
    kinds: dict[str, list[Comparison]] = {}
    for comparison in sorted(learned, key=lambda comparison: comparison.setting.order[1:]):
        kinds.setdefault(comparison.setting.kind, []).append(comparison)
    return {ALL: learned, **kinds} if len(kinds) > 1 else kinds


def normalised_score(
    study: Study, comparisons: Sequence[Comparison], variant: str, *, unit: Unit = "steps"
) -> Estimate | None:
    """Interquartile mean over the normalised scores of all runs of the variant, at equal steps or seconds; None where it has none."""
    own = shared(comparisons, variant)
    if not own:
        return None
    scores = [comparison.normalised(variant, comparison.budget(unit)) for comparison in own]
    return estimate(iqm, scores, [study.draws[comparison.cell(variant)] for comparison in own])


def probability_of_improvement(study: Study, comparisons: Sequence[Comparison], peer: str) -> Estimate | None:
    """Of the reference over the peer, in the settings that have both; None where there is none."""
    both = shared(comparisons, study.reference, peer)
    if not both:
        return None
    scores = [comparison.scores[variant] for variant in (study.reference, peer) for comparison in both]
    draws = [study.draws[comparison.cell(variant)] for variant in (study.reference, peer) for comparison in both]
    return estimate(improvement, scores, draws)


def shared(comparisons: Sequence[Comparison], *variants: str) -> list[Comparison]:
    """Those that have all of the variants."""
    return [comparison for comparison in comparisons if all(variant in comparison.runs for variant in variants)]


def aggregate_tables(study: Study) -> str:
    """Normalised scores and probabilities of improvement, by kind of perturbation."""
    kinds = by_kind(study)
    if not kinds:
        return "In no setting was any variant better than untrained: nothing can be normalised."
    counts = ["settings", *(str(len(comparisons)) for comparisons in kinds.values())]
    variants = [study.reference, *study.peers]
    parts = []
    for unit, name in UNITS.items():
        rows = [[variant, *(_score(study, group, variant, unit) for group in kinds.values())] for variant in variants]
        parts += [
            f"Normalised score at equal {name}, IQM (95 % interval):",
            table(["variant", *kinds], [counts, *rows]),
        ]
    chances = [[peer, *(_chance(study, group, peer) for group in kinds.values())] for peer in study.peers]
    if chances:
        title = f"Probability that a run of {study.reference} scores above one of the variant at equal interactions (95 % interval);"
        parts += [f"{title} 0.50 is even:", table([f"{study.reference} over", *kinds], chances)]
    if flat := [str(comparison.setting) for comparison in study.algorithms if not comparison.learned]:
        parts.append(f"Left out, since no variant was better than untrained: {'; '.join(flat)}.")
    return "\n\n".join(parts)


def _score(study: Study, comparisons: Sequence[Comparison], variant: str, unit: Unit) -> str:
    estimate = normalised_score(study, comparisons, variant, unit=unit)
    return _noted(estimate, len(shared(comparisons, variant)), len(comparisons))


def _chance(study: Study, comparisons: Sequence[Comparison], peer: str) -> str:
    count = len(shared(comparisons, study.reference, peer))
    return _noted(probability_of_improvement(study, comparisons, peer), count, len(comparisons))


def _noted(estimate: Estimate | None, count: int, of: int) -> str:
    if estimate is None:
        return NOTHING
    note = "" if count == of else f", {count} of {of} settings"
    return with_interval(estimate, scale=1.0) + note
