"""Marks for the signals of what the policy does not know, and how often they are exceeded where nothing is wrong."""

import math

import numpy as np
from numpy.typing import NDArray

from dst_core.calibration.by_episode import Indices, estimate
from dst_core.calibration.conformal import ROUNDING, Numbers, bound_above
from dst_core.calibration.result import Threshold
from dst_core.calibration.rollouts import Ticks
from dst_core.errors import CalibrationError


def episodes_for(rate: float) -> int:
    """Least number of episodes that can tell so rare an alarm: 1 / (K + 1) must fit into the rate."""
    return math.ceil(1 / rate - 1 - ROUNDING)


def require_false_alarm_rate(rate: float, episodes: int) -> None:
    """Refuse a rate rarer than these episodes can tell.

    Raises:
        CalibrationError: naming the rate and the episodes that would do.
    """
    needed = episodes_for(rate)
    if episodes < needed:
        least = math.ceil(1e4 / (episodes + 1)) / 1e4
        raise CalibrationError(
            f"--false-alarm-rate {rate:g} is too rare for {episodes} calibration episodes; "
            f"use --false-alarm-rate {least:g} or more, or --episodes {needed} or more"
        )


def ticks_without_a_fall(
    held_out: Ticks, test: Ticks, *, horizon: int, rate: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], str | None]:
    """Ticks that marks and their alarm rates are of: those that no fall follows within the horizon.

    A signal that rises before a fall does what it is for. Counted as a false alarm it would lift its own mark, most where falls are many.

    Args:
        held_out: calibration ticks, R of them.
        test: T of them.
        horizon: steps within which a fall is looked for.
        rate: of false alarms.

    Returns:
        Which of the ticks, (R,) and (T,), and None; or all of them and the reason, where too few episodes have such ticks.
    """
    calm, test_calm = (ticks.steps_to_fall > horizon for ticks in (held_out, test))
    left, test_left = (len(np.unique(ticks.episode[own])) for ticks, own in ((held_out, calm), (test, test_calm)))
    if left >= episodes_for(rate) and test_left:
        return calm, test_calm, None
    reason = (
        f"ticks before a fall count too, since {left} of {len(held_out.fell)} calibration and {test_left} of {len(test.fell)} "
        f"test episodes have others, and {episodes_for(rate)} and 1 must; use a shorter --failure-horizon-s or more --episodes"
    )
    return np.ones_like(calm), np.ones_like(test_calm), reason


def threshold(
    signal: Numbers, episode: Indices, *, rate: float, test_signal: Numbers, test_episode: Indices
) -> Threshold:
    """The mark that a random tick of a new episode of the training task exceeds with at most probability `rate`.

    It is the conformal upper bound of `dst_core.calibration.conformal` at level 1 - rate, with the same guarantee, for ticks and episodes
    of the kind given (`ticks_without_a_fall`).

    Args:
        signal: (R,) on calibration ticks.
        episode: (R,) see `by_episode`.
        rate: in (0, 1).
        test_signal: (T,) on test ticks.
        test_episode: (T,)

    Raises:
        CalibrationError: if there are too few episodes for the rate.
    """
    require_false_alarm_rate(rate, int(episode.max()) + 1)
    mark = bound_above(signal, episode, 1 - rate)
    return Threshold(value=mark, alarm_rate=estimate(test_signal > mark, test_episode))
