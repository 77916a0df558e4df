"""The claims made for DST, each with a criterion stated beforehand, its verdict, and the numbers it rests on."""

import functools
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from benchmarks.experiments.results import UNDISTURBED
from benchmarks.report.ablations import normalised_difference
from benchmarks.report.aggregate import shared
from benchmarks.report.markdown import bullets, table, with_bounds, with_interval
from benchmarks.report.runs import Cell, Floats
from benchmarks.report.statistics import Bounds, Estimate, estimate, estimate_bounds, iqm, median_ratio, spread_ratio
from benchmarks.report.study import ABLATION_MARK, Comparison, Study, base_of

Verdict = Literal["held", "not held", "undecided", "not tested"]

FEWER = 0.75
"""Ratio of interactions that still is "about 30 % fewer"."""
LITTLE = 0.1
"""Difference of normalised scores that is little."""
NONE = 0.05
"""Difference of normalised scores that is none for practical purposes."""
ROUNDING = 1e-9
LOCATIONS = re.compile(r"PointMass(\d+)-v\d+")
ONE_SEED = "one seed has no interval"
Term = tuple[Comparison, tuple[str, ...], float]
"""A comparison, the peers over which the lead is taken, and its weight."""


class Claim(NamedTuple):
    """A claim and what became of it."""

    claim: str
    criterion: str
    verdict: Verdict
    finding: str


def claims(study: Study) -> list[Claim]:
    """All of them, in a fixed order."""
    return [
        fewer_interactions(study, "mage", "MAGE"),
        fewer_interactions(study, "iqn", "a quantile critic (iqn)"),
        lower_variance(study),
        harm_without_sobolev_terms(study),
        max_sliced_adds_little(study),
        advantage_grows_with_noise(study),
        advantage_grows_with_reward_locations(study),
    ]


def claims_section(study: Study) -> str:
    """For the page: verdicts, then criteria."""
    made = claims(study)
    verdicts = [[claim.claim, f"**{claim.verdict}**", claim.finding] for claim in made]
    return "\n\n".join(
        [
            table(["claim", "verdict", "found (95 % interval)"], verdicts, left=3),
            "The criteria; what is neither held nor not held is undecided:",
            bullets(f"{claim.claim}. {claim.criterion}" for claim in made),
        ]
    )


def fewer_interactions(study: Study, peer: str, name: str) -> Claim:
    """About 30 % fewer interactions to the level than the peer: the median over settings of the ratio of medians."""
    claim = f"About 30 % fewer interactions to the level than {name}"
    criterion = (
        f"Median over settings of the ratio of median interactions. Held: ratio at most {FEWER} and its interval below 1. "
        f"Not held: interval above {FEWER}."
    )
    both = [
        comparison
        for comparison in shared(study.algorithms, study.reference, peer)
        if comparison.learned
        and any(np.isfinite(np.median(comparison.interactions[variant])) for variant in (study.reference, peer))
    ]
    if not both:
        return Claim(
            claim,
            criterion,
            "not tested",
            f"in no setting did {study.reference} or {peer} reach the level beside the other",
        )
    ratio = _median_over_settings(
        study,
        both,
        peer,
        [functools.partial(median_ratio, limit=comparison.steps.limit) for comparison in both],
        [comparison.interactions for comparison in both],
    )
    finding = f"{with_bounds(ratio)} over {_settings(len(both))}"
    if ratio.low is None or ratio.high is None:
        return Claim(claim, criterion, "not tested", f"{finding}; {ONE_SEED}")
    verdict = _verdict(held=ratio.most <= FEWER and ratio.high < 1, not_held=ratio.low > FEWER)
    return Claim(claim, criterion, verdict, finding)


def lower_variance(study: Study) -> Claim:
    """Lower spread of the scores across seeds than every peer's: the median over settings of the ratio of standard deviations."""
    claim = "Lower variance across seeds"
    criterion = (
        "Ratio of standard deviations of scores across seeds, median over settings. "
        "Held: interval below 1 for every other algorithm. Not held: above 1 for one of them."
    )
    ratios: dict[str, Bounds] = {}
    for peer in study.peers:
        both = [
            comparison
            for comparison in shared(study.algorithms, study.reference, peer)
            if min(len(comparison.runs[variant]) for variant in (study.reference, peer)) > 1
        ]
        if both and not _own(study, peer):
            scores = [comparison.scores for comparison in both]
            ratios[peer] = _median_over_settings(study, both, peer, [spread_ratio] * len(both), scores)
    if not ratios:
        return Claim(claim, criterion, "not tested", "no setting has two seeds of both algorithms")
    verdict = _verdict(
        held=all(ratio.high is not None and ratio.high < 1 for ratio in ratios.values()),
        not_held=any(ratio.low is not None and ratio.low > 1 for ratio in ratios.values()),
    )
    finding = "; ".join(f"against {peer} {with_bounds(ratio)}" for peer, ratio in ratios.items())
    return Claim(claim, criterion, verdict, finding)


def harm_without_sobolev_terms(study: Study) -> Claim:
    """The normalised score falls without the Sobolev terms."""
    criterion = (
        f"Normalised score with them less that without. Held: interval above 0. Not held: interval below {NONE}."
    )
    base = _base(study.reference)
    variant = f"{base}{ABLATION_MARK}no Sobolev terms"
    difference = normalised_difference(study, study.ablations, base, variant)
    return _of_difference(
        "Harm without the Sobolev terms",
        criterion,
        difference,
        missing=f"no setting has both {base} and {variant!r}",
        judge=_positive,
    )


def max_sliced_adds_little(study: Study) -> Claim:
    """The normalised score with the max-sliced distance is near that with the plain one."""
    criterion = f"Normalised score of max-sliced less that of plain. Held: interval within ±{LITTLE}. Not held: interval outside ±{LITTLE}."
    base = _base(study.reference)
    variant = f"{base}{ABLATION_MARK}max-sliced"
    difference = normalised_difference(study, study.ablations, variant, base)
    return _of_difference(
        "The max-sliced loss adds little",
        criterion,
        difference,
        missing=f"no setting has both {base} and {variant!r}",
        judge=_little,
    )


def advantage_grows_with_noise(study: Study) -> Claim:
    """The reference's lead over its peers is larger in a disturbed setting than in the same task undisturbed."""
    criterion = (
        "Lead in normalised score over the mean of the other algorithms, disturbed less undisturbed, mean over disturbed settings. "
        f"Held: interval above 0. Not held: interval below {NONE}."
    )
    plain = {c.setting.environment: c for c in _led(study) if c.setting.perturbation == UNDISTURBED}
    terms: list[Term] = []
    disturbed = [c for c in _led(study) if c.setting.perturbation != UNDISTURBED and c.setting.environment in plain]
    for comparison in disturbed:
        beside = plain[comparison.setting.environment]
        if peers := _common_peers(study, [comparison, beside]):
            terms += [(comparison, peers, 1.0), (beside, peers, -1.0)]
    growth = _weighted_leads(study, [(c, peers, 2 * weight / len(terms)) for c, peers, weight in terms])
    return _of_difference(
        "The advantage grows with noise",
        criterion,
        growth,
        missing="no task was run both disturbed and undisturbed with the same algorithms",
        judge=_positive,
        over=_settings(len(terms) // 2),
    )


def advantage_grows_with_reward_locations(study: Study) -> Claim:
    """The reference's lead over its peers grows with N in PointMassN."""
    criterion = (
        "Slope of the lead in normalised score over the mean of the other algorithms, per doubling of N in PointMassN (least squares), "
        f"mean over perturbations. Held: interval above 0. Not held: interval below {NONE}."
    )
    by_perturbation: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in _led(study):
        if LOCATIONS.fullmatch(comparison.setting.environment):
            by_perturbation[comparison.setting.perturbation].append(comparison)
    terms: list[Term] = []
    series = 0
    for comparisons in by_perturbation.values():
        peers = _common_peers(study, comparisons)
        if len(comparisons) > 1 and peers:
            doublings = np.log2([_locations(comparison) for comparison in comparisons])
            centred = doublings - doublings.mean()
            weights = centred / (centred**2).sum()
            terms += [(c, peers, float(weight)) for c, weight in zip(comparisons, weights, strict=True)]
            series += 1
    slope = _weighted_leads(study, [(c, peers, weight / series) for c, peers, weight in terms])
    return _of_difference(
        "The advantage grows with the number of reward locations",
        criterion,
        slope,
        missing="PointMassN was not run with two N and the same algorithms",
        judge=_positive,
        over=f"{series} series of N" if series != 1 else "one series of N",
    )


def _of_difference(
    claim: str,
    criterion: str,
    difference: Estimate | None,
    *,
    missing: str,
    judge: Callable[[float, float], Verdict],
    over: str = "",
) -> Claim:
    if difference is None:
        return Claim(claim, criterion, "not tested", missing)
    finding = with_interval(difference, scale=1.0) + (f" over {over}" if over else "")
    if difference.low is None or difference.high is None:
        return Claim(claim, criterion, "not tested", f"{finding}; {ONE_SEED}")
    return Claim(claim, criterion, judge(difference.low, difference.high), finding)


def _positive(low: float, high: float) -> Verdict:
    return _verdict(held=low > ROUNDING, not_held=high < NONE)


def _little(low: float, high: float) -> Verdict:
    return _verdict(held=low > -LITTLE and high < LITTLE, not_held=low > LITTLE or high < -LITTLE)


def _verdict(*, held: bool, not_held: bool) -> Verdict:
    if held:
        return "held"
    return "not held" if not_held else "undecided"


def _settings(count: int) -> str:
    return "one setting" if count == 1 else f"{count} settings"


def _own(study: Study, variant: str) -> bool:
    return _base(variant) == _base(study.reference)


def _base(variant: str) -> str:
    return base_of(variant) or variant


def _median_over_settings(
    study: Study,
    comparisons: Sequence[Comparison],
    peer: str,
    ratios: Sequence[Callable[[Floats, Floats], tuple[Floats, Floats]]],
    numbers: Sequence[Mapping[str, Floats]],
) -> Bounds:
    """Median over settings of a ratio of the reference's runs to the peer's, each known within bounds."""

    def statistic(*cells: Floats) -> tuple[Floats, Floats]:
        pairs = zip(ratios, cells[::2], cells[1::2], strict=True)
        least, most = zip(*(ratio(own, other) for ratio, own, other in pairs), strict=True)
        return np.median(least, axis=0), np.median(most, axis=0)

    cells = [(index, variant) for index in range(len(comparisons)) for variant in (study.reference, peer)]
    return estimate_bounds(
        statistic,
        [numbers[index][variant] for index, variant in cells],
        [study.draws[comparisons[index].cell(variant)] for index, variant in cells],
    )


def _led(study: Study) -> list[Comparison]:
    return [comparison for comparison in shared(study.algorithms, study.reference) if comparison.learned]


def _common_peers(study: Study, comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Other algorithms, without the reference's own changes, that are in all of the comparisons."""
    return tuple(
        peer for peer in study.peers if not _own(study, peer) and len(shared(comparisons, peer)) == len(comparisons)
    )


def _weighted_leads(study: Study, terms: Sequence[Term]) -> Estimate | None:
    """Sum of weighted leads; the lead is the reference's normalised score less the mean of its peers'."""
    if not terms:
        return None
    weights: dict[Cell, float] = defaultdict(float)
    scores: dict[Cell, Floats] = {}
    for comparison, peers, weight in terms:
        for variant in (study.reference, *peers):
            cell = comparison.cell(variant)
            weights[cell] += weight if variant == study.reference else -weight / len(peers)
            scores[cell] = comparison.normalised(variant)

    def statistic(*cells: Floats) -> Floats:
        return np.asarray(sum(weight * iqm(cell) for weight, cell in zip(weights.values(), cells, strict=True)))

    return estimate(statistic, list(scores.values()), [study.draws[cell] for cell in scores])


def _locations(comparison: Comparison) -> int:
    match = LOCATIONS.fullmatch(comparison.setting.environment)
    assert match is not None
    return int(match[1])
