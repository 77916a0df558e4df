"""Does it warn? How well each served signal tells, tick by tick, that the episode will fall within a horizon."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dst_core.calibration.by_episode import INTERVAL, Array, Indices, resamples
from dst_core.calibration.conformal import Numbers
from dst_core.calibration.result import Estimate, WarningSignal
from dst_core.calibration.rollouts import Ticks

LEAST_FALLS = 10
"""Episodes that fall, below which a curve says next to nothing."""
CURVE_POINTS = 50
Flags = NDArray[np.bool_]


def warnings(
    signals: Mapping[str, Numbers], falling: Flags, ticks: Ticks
) -> tuple[tuple[WarningSignal, ...], str | None]:
    """ROC curve of every signal, with the area under it; shares are of time, of which a kept tick stands for its part of the episode.

    Args:
        signals: name to values (R,), higher where a fall is nearer. Their intervals hold together with 95 % (Bonferroni): the best of
            several that know nothing looks better than chance.
        falling: (R,) whether the episode falls within the horizon from this tick on.
        ticks: R of them, of the test episodes.

    Returns:
        The curves; none, and the reason, where too few episodes fall or there is no tick without a fall ahead.
    """
    falls = len(np.unique(ticks.episode[falling]))
    if falls < LEAST_FALLS:
        reason = (
            f"{ticks.fell.sum()} of {len(ticks.fell)} test episodes fell, and {falls} have a kept tick within the horizon of a fall; "
            f"at least {LEAST_FALLS} must"
        )
        return (), reason
    if falling.all():
        return (), "every tick is within the horizon of a fall, so there is nothing to tell it from"
    steps_each = (ticks.length / np.bincount(ticks.episode))[ticks.episode]
    interval = INTERVAL[0] / len(signals), 1 - (1 - INTERVAL[1]) / len(signals)
    return tuple(
        _warning(name, signal, falling, weight=steps_each, episode=ticks.episode, interval=interval)
        for name, signal in signals.items()
    ), None


def _warning(
    name: str, signal: Numbers, falling: Flags, *, weight: Array, episode: Indices, interval: tuple[float, float]
) -> WarningSignal:
    place = _descending_places(signal)
    false_alarms, warned = roc_curve(place, falling, weight)
    drawn = np.array(
        [_auc(*roc_curve(place, falling, weight * counts[episode])) for counts in resamples(int(episode.max()) + 1)]
    )
    low, high = np.quantile(drawn[np.isfinite(drawn)], interval)
    shown = _along(false_alarms, warned)
    return WarningSignal(
        signal=name,
        auc=Estimate(value=_auc(false_alarms, warned), low=float(low), high=float(high)),
        false_alarms=tuple(false_alarms[shown].tolist()),
        warned=tuple(warned[shown].tolist()),
    )


def auc(signal: Numbers, falling: Flags, weight: NDArray[np.generic] | None = None) -> float:
    """Area under the ROC curve: the chance that a tick before a fall has the higher signal, ties as half (Hanley and McNeil, 1982)."""
    return _auc(*roc_curve(_descending_places(signal), falling, np.ones(len(signal)) if weight is None else weight))


def _descending_places(signal: Numbers) -> Indices:
    """Rank of every value among the distinct ones, 0 for the highest."""
    places: Indices = np.unique(-signal, return_inverse=True)[1]
    return places


def roc_curve(place: Indices, falling: Flags, weight: NDArray[np.generic]) -> tuple[Array, Array]:
    """Shares of false alarms and of falls warned of, marks descending, from (0, 0) to (1, 1).

    Args:
        place: (R,) rank of every signal among the distinct ones, 0 for the highest.
        falling: (R,)
        weight: (R,) how much each tick counts.

    Returns:
        (D + 1,) each for D distinct signals; NaN where one kind of tick is missing.
    """
    size = int(place.max()) + 1
    shares = []
    for kind in (~falling, falling):
        counted = np.concatenate([[0.0], np.cumsum(np.bincount(place, weight * kind, size))])
        with np.errstate(invalid="ignore"):
            shares.append(counted / counted[-1])
    return shares[0], shares[1]


def _auc(false_alarms: Array, warned: Array) -> float:
    return float((np.diff(false_alarms) * (warned[1:] + warned[:-1])).sum() / 2)


def _along(false_alarms: Array, warned: Array) -> Indices:
    """Points spread evenly over the length of the curve, both ends among them."""
    length = false_alarms + warned
    nearest = np.searchsorted(length, np.linspace(0, length[-1], CURVE_POINTS))
    return np.unique(np.minimum(nearest, len(length) - 1))
