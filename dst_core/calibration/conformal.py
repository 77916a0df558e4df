"""A correction of quantiles that holds whatever the law is worth: conformal prediction over whole episodes.

The score of a tick at one level is how far the realised return lies above the predicted quantile, in predicted standard deviations,
s = (G - q) / std. Ticks of one episode are not exchangeable, episodes of one task are. So each of K calibration episodes weighs
1 / (K + 1), shared evenly by its ticks, and the episode to come has the remaining 1 / (K + 1), at +infinity for levels above the median
and at -infinity for levels below it. The offset of a level is that weighted quantile of the scores: hierarchical conformal prediction
(Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023; Dunn, Wasserman and Ramdas, "Distribution-free
prediction sets for two-layer hierarchical models", 2022).

Guarantee: for a tick drawn at random from a new episode of the same task under the same policy, the realised return is at most the
corrected quantile with at least the probability of a level above the median, and below it with at most the probability of a level below
the median, so a central interval holds at least its nominal share. It is an average over calibration sets as well as over episodes and
their ticks: it says nothing of one state, of one calibration set, or of another task.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dst_core.calibration.by_episode import Array, Indices, episode_weights
from dst_core.errors import CalibrationError

STD_FLOOR = 1e-6
"""Least predicted standard deviation that is divided by, in units of reward."""
ROUNDING = 1e-9
Numbers = NDArray[np.floating]


def episodes_needed(levels: Sequence[float]) -> int:
    """Least number of episodes for which every offset is finite: 1 / (K + 1) must fit into the rarest tail."""
    rarest = min(min(level, 1 - level) for level in levels)
    return math.ceil(1 / rarest - 1 - ROUNDING)


def require_episodes(episodes: int, levels: Sequence[float]) -> None:
    """Refuse too few.

    Raises:
        CalibrationError: if an offset would be infinite.
    """
    needed = episodes_needed(levels)
    if episodes < needed:
        extreme = max(levels, key=lambda level: abs(level - 0.5))
        raise CalibrationError(
            f"{episodes} calibration episodes are too few for the level {extreme:g}, which needs at least {needed}; "
            f"use --episodes {needed} or more"
        )


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


def offsets(realised: Numbers, raw: Numbers, std: Numbers, episode: Indices, levels: Sequence[float]) -> Array:
    """Offset of every quantile in units of the predicted standard deviation, (Q,); guarantee in the module's docstring.

    Args:
        realised: (R,) discounted returns of calibration ticks.
        raw: (R, Q) predicted quantiles.
        std: (R,) predicted standard deviations.
        episode: (R,) see `by_episode`.
        levels: (Q,) ascending, in (0, 1).

    Raises:
        CalibrationError: if there are too few episodes for the rarest level.
    """
    require_episodes(int(episode.max()) + 1, levels)
    scores = (realised[:, None] - raw) / np.maximum(std, STD_FLOOR)[:, None]
    return np.array([_offset(column, episode, level) for column, level in zip(scores.T, levels, strict=True)])


def _offset(scores: Numbers, episode: Indices, level: float) -> float:
    if level > 0.5:
        return bound_above(scores, episode, level)
    if level < 0.5:
        return -bound_above(-scores, episode, 1 - level)
    order = np.argsort(scores)
    below = np.cumsum(episode_weights(episode)[order])
    return float(scores[order[np.searchsorted(below, 0.5 - ROUNDING)]])


def corrected(raw: Numbers, std: Numbers, offsets: Numbers, levels: Sequence[float]) -> Array:
    """Corrected quantiles, (B, Q): raw + offset x std, then monotone away from the level nearest the median.

    From there outward no quantile may come back, so upper ones only rise and lower ones only fall, and the guarantee stays.

    Args:
        raw: (B, Q) predicted quantiles.
        std: (B,) predicted standard deviations.
        offsets: (Q,)
        levels: (Q,) ascending.
    """
    moved = raw + offsets * np.maximum(std, STD_FLOOR)[:, None]
    middle = int(np.abs(np.asarray(levels) - 0.5).argmin())
    upward = np.maximum.accumulate(moved[:, middle:], axis=1)
    downward = np.minimum.accumulate(moved[:, middle::-1], axis=1)[:, ::-1]
    return np.concatenate([downward[:, :-1], upward], axis=1)
