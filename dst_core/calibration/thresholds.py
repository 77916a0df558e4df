"""Marks for the signals of what the policy does not know, and how often they are exceeded where nothing is wrong."""

from dst_core.calibration.by_episode import Indices, estimate
from dst_core.calibration.conformal import Numbers, bound_above, require_episodes
from dst_core.calibration.result import Threshold


def require_false_alarm_rate(rate: float, episodes: int) -> None:
    """Refuse a rate rarer than these episodes can tell.

    Raises:
        CalibrationError: naming the episodes needed.
    """
    require_episodes(episodes, (1 - rate,))


def threshold(
    signal: Numbers, episode: Indices, *, rate: float, test_signal: Numbers, test_episode: Indices
) -> Threshold:
    """The mark that a random tick of a new episode of the training task exceeds with at most probability `rate`.

    It is the conformal upper bound of `dst_core.calibration.conformal` at level 1 - rate, with the same guarantee.

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
