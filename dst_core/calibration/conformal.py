"""A correction of quantiles that holds whatever the law is worth: conformal prediction over whole episodes.

The score of a tick is the position of the realised return on its predicted quantile curve: between two predicted quantiles a level of the
predicted law, beyond the outermost one that level and the way beyond in predicted standard deviations, none taken as less than a floor
(`std_floor`), lest a law that claims certainty be corrected in units of nothing. Ticks of one episode are not exchangeable, episodes of
one task are. So each of K calibration episodes weighs 1 / (K + 1), shared evenly by its ticks, and the episode to come has the rest,
1 / (K + 1), at +infinity for levels above the median and at -infinity for levels below it. The position of a level is that weighted
quantile of the scores: hierarchical conformal prediction (Lee, Barber and Willett, "Distribution-free inference with hierarchical data",
2023; Dunn, Wasserman and Ramdas, "Distribution-free prediction sets for two-layer hierarchical models", 2022) with the score of
distributional conformal prediction (Chernozhukov, Wuethrich and Zhu, PNAS 2021). The corrected quantile is the predicted curve at that
position. Positions rise with the level and so does the curve: corrected quantiles never cross.

Guarantee: for a tick drawn at random from a new episode of the same task under the same policy, the realised return is at most the
corrected quantile with at least the probability of a level above the median, and below it with at most the probability of a level below
the median, so a central interval holds at least its nominal share; without ties each share is exceeded by at most 1 / (K + 1) and the
weight of one tick. It is an average over calibration sets as well as over episodes and their ticks: it says nothing of one state,
of one calibration set, or of another task. The floor leaves it as it is: any score will do that was fixed without the episodes that set the
positions, and the floor comes from episodes of its own.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dst_core.calibration.by_episode import Array, Indices, episode_weights, mean_and_std
from dst_core.errors import CalibrationError

SPREAD_SHARE = 1e-3
"""Least predicted standard deviation that is believed, in standard deviations of realised returns. A law that was right to be as sure as
that would leave a millionth of their variance unexplained; trained critics stay above 0.04 at every tick."""
LEAST_FLOOR = 1e-6
"""The same in units of reward, for returns that hardly vary."""
ROUNDING = 1e-9
Numbers = NDArray[np.floating]


def episodes_needed(levels: Sequence[float]) -> int:
    """Least number of episodes for which every position is finite: 1 / (K + 1) must fit into the rarest tail."""
    rarest = min(min(level, 1 - level) for level in levels)
    return math.ceil(1 / rarest - 1 - ROUNDING)


def require_episodes(episodes: int, levels: Sequence[float]) -> None:
    """Refuse too few.

    Raises:
        CalibrationError: if a position would be infinite.
    """
    needed = episodes_needed(levels)
    if episodes < needed:
        extreme = max(levels, key=lambda level: abs(level - 0.5))
        raise CalibrationError(
            f"{episodes} calibration episodes are too few for the level {extreme:g}, which needs at least {needed}; "
            f"use --episodes {needed} or more"
        )


def std_floor(realised: Array, episode: Indices) -> float:
    """Least predicted standard deviation that is divided by, in units of reward.

    Args:
        realised: (R,) discounted returns of ticks of episodes that set no position and test none.
        episode: (R,) see `by_episode`.
    """
    return max(SPREAD_SHARE * mean_and_std(realised, episode)[1], LEAST_FLOOR)


def bound_above(values: Numbers, episode: Indices, level: float) -> float:
    """Least of the values that a new episode's random tick stays at or below with at least probability `level`.

    Args:
        values: (R,) of calibration ticks.
        episode: (R,) see `by_episode`.
        level: in (0, 1).

    Returns:
        Infinity where there are too few episodes.
    """
    episodes = int(episode.max()) + 1
    order = np.argsort(values)
    covered = np.cumsum(episode_weights(episode)[order]) * episodes / (episodes + 1)
    place = int(np.searchsorted(covered, level - ROUNDING))
    return float(values[order[place]]) if place < len(values) else math.inf


def positions(
    realised: Numbers, raw: Numbers, std: Numbers, episode: Indices, levels: Sequence[float], *, floor: float
) -> Array:
    """Position of every corrected quantile on the predicted quantile curve, (Q,), ascending; guarantee in the module's docstring.

    Args:
        realised: (R,) discounted returns of calibration ticks.
        raw: (R, Q) predicted quantiles.
        std: (R,) predicted standard deviations.
        episode: (R,) see `by_episode`.
        levels: (Q,) ascending, in (0, 1).
        floor: `std_floor`.

    Raises:
        CalibrationError: if there are too few episodes for the rarest level.
    """
    require_episodes(int(episode.max()) + 1, levels)
    first = first_position(realised, raw, std, levels, floor=floor)
    last = last_position(realised, raw, std, levels, floor=floor)
    return np.array([_position(first, last, episode, level) for level in levels])


def _position(first: Numbers, last: Numbers, episode: Indices, level: float) -> float:
    if level > 0.5:
        return bound_above(first, episode, level)
    if level < 0.5:
        return -bound_above(-last, episode, 1 - level)
    order = np.argsort(first)
    below = np.cumsum(episode_weights(episode)[order])
    return float(first[order[np.searchsorted(below, 0.5 - ROUNDING)]])


def first_position(value: Numbers, raw: Numbers, std: Numbers, levels: Sequence[float], *, floor: float) -> Array:
    """Least position at which the predicted curve reaches a value, (R,).

    Args:
        value: (R,)
        raw: (R, Q) predicted quantiles.
        std: (R,) predicted standard deviations.
        levels: (Q,) ascending.
        floor: `std_floor`.
    """
    at, rows, last = np.asarray(levels, np.float64), np.arange(len(value)), raw.shape[1] - 1
    passed = (raw < value[:, None]).sum(1)
    left, right = np.clip(passed - 1, 0, last - 1), np.clip(passed, 1, last)
    low, high = raw[rows, left].astype(np.float64), raw[rows, right].astype(np.float64)
    share = (value - low) / np.where(high > low, high - low, 1.0)
    unit = np.maximum(std, floor)
    below, above = at[0] + (value - raw[:, 0]) / unit, at[last] + (value - raw[:, last]) / unit
    within = at[left] + share * (at[right] - at[left])
    found: Array = np.where(passed == 0, below, np.where(passed > last, above, within))
    return found


def last_position(value: Numbers, raw: Numbers, std: Numbers, levels: Sequence[float], *, floor: float) -> Array:
    """Greatest position at which the predicted curve is not yet above a value, (R,); arguments as `first_position`."""
    mirrored = [1 - level for level in reversed(levels)]
    return 1 - first_position(-value, -raw[:, ::-1], std, mirrored, floor=floor)


def on_curve(positions: Numbers, levels: Sequence[float]) -> tuple[Array, Array]:
    """The predicted curve at positions (Q,), as weights (Q, Q) of the predicted quantiles and standard deviations beyond them, (Q,)."""
    at = np.asarray(levels, np.float64)
    inside = np.clip(positions, at[0], at[-1])
    weights = np.stack([np.interp(inside, at, one) for one in np.eye(len(at))])
    return weights, np.asarray(positions - inside, np.float64)


def corrected(raw: Numbers, std: Numbers, positions: Numbers, levels: Sequence[float], *, floor: float) -> Array:
    """Corrected quantiles, (B, Q): the predicted curve at the positions.

    Args:
        raw: (B, Q) predicted quantiles.
        std: (B,) predicted standard deviations.
        positions: (Q,) ascending.
        levels: (Q,) ascending.
        floor: `std_floor`.
    """
    weights, beyond = on_curve(positions, levels)
    return np.sort(raw @ weights + beyond * np.maximum(std, floor)[:, None], axis=1)
