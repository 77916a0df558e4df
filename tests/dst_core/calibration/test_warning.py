"""Thresholds and warnings: areas against a double loop, alarm rates against what was asked."""

import re

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from dst_core.calibration.rollouts import Ticks
from dst_core.calibration.thresholds import require_false_alarm_rate, threshold, ticks_without_a_fall
from dst_core.calibration.warning import CURVE_POINTS, LEAST_FALLS, auc, roc_curve, warnings
from dst_core.errors import CalibrationError


def test_area_is_that_of_a_double_loop_with_ties_as_half() -> None:
    rng = np.random.default_rng(0)
    signal, falling = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.3
    signal[falling] += 1
    won = [
        1.0 if before > other else 0.5 if before == other else 0.0
        for before in signal[falling]
        for other in signal[~falling]
    ]
    assert auc(signal, falling) == pytest.approx(np.mean(won))
    ranks = mannwhitneyu(signal[falling], signal[~falling]).statistic
    assert auc(signal, falling) == pytest.approx(ranks / (falling.sum() * (~falling).sum()))
    assert auc(-signal, falling) == pytest.approx(1 - np.mean(won))


def test_curve_is_the_shares_at_or_above_every_mark() -> None:
    rng = np.random.default_rng(1)
    signal, falling = rng.integers(0, 5, 60).astype(float), rng.random(60) < 0.4
    marks = sorted(set(signal), reverse=True)
    place = np.array([marks.index(value) for value in signal])
    false_alarms, warned = roc_curve(place, falling, np.ones(60))
    np.testing.assert_allclose(false_alarms, [0, *((signal[~falling] >= mark).mean() for mark in marks)])
    np.testing.assert_allclose(warned, [0, *((signal[falling] >= mark).mean() for mark in marks)])


def test_tick_that_counts_twice_counts_like_two() -> None:
    rng = np.random.default_rng(2)
    place, falling = rng.integers(0, 5, 40), rng.random(40) < 0.5
    weight = rng.integers(0, 3, 40)
    twice = np.repeat(np.arange(40), weight)
    weighted, repeated = roc_curve(place, falling, weight), roc_curve(place[twice], falling[twice], np.ones(len(twice)))
    size = len(repeated[0])
    for one, other in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(one[:size], other)


def ticks_of(episode: np.ndarray, *, fell: np.ndarray | None = None, **known: np.ndarray) -> Ticks:
    """Every step kept and no fall, unless told otherwise."""
    count, steps = len(episode), np.bincount(episode)
    none = {"observation": np.zeros((count, 1), np.float32), "action": np.zeros((count, 1), np.float32)}
    others = {"realised": np.zeros(count), "steps_to_fall": np.full(count, np.inf), "length": steps.astype(float)}
    return Ticks(episode=episode, fell=np.zeros(len(steps), bool) if fell is None else fell, **(none | others | known))


def test_kept_tick_counts_as_many_steps_as_it_stands_for() -> None:
    """50 kept of 1000 steps without a fall, signal 0; 50 of 60 in an episode that falls: 48 steps with 2, then 12 with 1."""
    episode = np.repeat(np.arange(20), 50)
    falling = (episode >= 10) & (np.arange(1000) % 50 >= 40)
    signal = np.where(falling, 1.0, np.where(episode >= 10, 2.0, 0.0))
    (found,), _ = warnings({"signal": signal}, falling, ticks_of(episode, length=np.repeat([1000.0, 60.0], 10)))
    assert found.auc.value == pytest.approx(1000 / 1048)
    assert found.auc.low <= found.auc.value <= found.auc.high


def episodes(falls: int, others: int) -> tuple[np.ndarray, np.ndarray]:
    """Ten ticks each; those that fall are within the horizon for the last three."""
    episode = np.repeat(np.arange(falls + others), 10)
    return episode, (episode < falls) & (np.arange(len(episode)) % 10 >= 7)


def test_intervals_of_several_signals_are_wider_than_of_one_so_that_the_luckiest_is_not_taken_for_a_warning() -> None:
    rng = np.random.default_rng(0)
    episode, falling = episodes(15, 45)
    blind = {str(index): rng.standard_normal(60)[episode] for index in range(5)}
    together, _ = warnings(blind, falling, ticks_of(episode))
    for found in together:
        (alone,), _ = warnings({found.signal: blind[found.signal]}, falling, ticks_of(episode))
        assert found.auc.value == alone.auc.value
        assert found.auc.low < alone.auc.low
        assert found.auc.high > alone.auc.high


def test_signals_are_told_apart_with_intervals_and_a_curve_from_corner_to_corner() -> None:
    rng = np.random.default_rng(3)
    episode, falling = episodes(30, 30)
    noise = rng.standard_normal(len(episode))
    found, reason = warnings(
        {"good": falling + 0.2 * noise, "none": noise, "constant": 0 * noise}, falling, ticks_of(episode)
    )
    assert reason is None
    good, none, constant = found
    assert [signal.signal for signal in found] == ["good", "none", "constant"]
    assert good.auc.value > 0.99
    assert good.auc.value == pytest.approx(auc(falling + 0.2 * noise, falling))
    assert none.auc.low < 0.5 < none.auc.high
    assert 0 < none.auc.high - none.auc.low < 0.4
    assert (constant.auc.value, constant.auc.low, constant.auc.high) == (0.5, 0.5, 0.5)
    for signal in found:
        assert (signal.false_alarms[0], signal.warned[0]) == (0, 0)
        assert (signal.false_alarms[-1], signal.warned[-1]) == (1, 1)
        assert (np.diff(signal.false_alarms) >= 0).all()
        assert (np.diff(signal.warned) >= 0).all()
    assert 20 <= len(none.false_alarms) <= 60


def test_curve_that_is_kept_has_few_of_the_points_and_the_area_has_all() -> None:
    """4000 ticks, no two signals alike."""
    rng = np.random.default_rng(6)
    episode, falling = episodes(200, 200)
    signal = 3.0 * falling + rng.standard_normal(len(episode))
    (kept,), _ = warnings({"signal": signal}, falling, ticks_of(episode))
    above, below = signal[falling], signal[~falling]
    assert kept.auc.value == pytest.approx((above[:, None] > below).mean(), abs=1e-12)
    points = np.column_stack([kept.false_alarms, kept.warned])
    assert 40 <= len(points) <= CURVE_POINTS
    marks = [np.inf, *signal]
    exact = np.array([[(kind >= mark).mean() for kind in (below, above)] for mark in marks])
    assert np.abs(points[:, None] - exact).sum(2).min(1).max() < 1e-12
    step = np.diff(points, axis=0)
    assert step.min() >= 0
    assert step.sum(1).max() < 2 * 2 / CURVE_POINTS, "even steps along the curve: no part of it is left out"
    assert points[0].tolist() == [0, 0]
    assert points[-1].tolist() == [1, 1]


def test_interval_is_over_episodes_and_not_over_ticks() -> None:
    """Ticks that repeat within their episode say nothing new."""
    rng = np.random.default_rng(4)
    episode, falling = episodes(12, 12)
    signal = rng.standard_normal(24)[episode]
    (once,), _ = warnings({"signal": signal}, falling, ticks_of(episode))
    again = np.tile(np.arange(len(episode)), 5)
    again = again[np.argsort(episode[again], kind="stable")]
    (repeated,), _ = warnings({"signal": signal[again]}, falling[again], ticks_of(episode[again]))
    assert repeated.auc.value == pytest.approx(once.auc.value)
    assert repeated.auc.low == pytest.approx(once.auc.low)


def test_without_enough_falls_or_without_other_ticks_nothing_is_said() -> None:
    episode, falling = episodes(LEAST_FALLS - 1, 20)
    fell = np.arange(29) < 12
    found, reason = warnings({"signal": episode.astype(float)}, falling, ticks_of(episode, fell=fell))
    assert found == ()
    assert (
        reason == "12 of 29 test episodes fell, and 9 have a kept tick within the horizon of a fall; at least 10 must"
    )
    episode, _ = episodes(20, 0)
    found, reason = warnings({"signal": episode.astype(float)}, np.ones(200, bool), ticks_of(episode))
    assert found == ()
    assert reason is not None
    assert "every tick is within the horizon" in reason


def test_threshold_is_exceeded_as_rarely_as_asked_on_average() -> None:
    rng = np.random.default_rng(5)

    def signals(count: int) -> tuple[np.ndarray, np.ndarray]:
        level = rng.exponential(size=count)
        episode = np.repeat(np.arange(count), np.where(level > 1, 2, 20))
        return level[episode] + 0.01 * rng.random(len(episode)), episode

    test_signal, test_episode = signals(1000)
    rates = []
    for _ in range(60):
        signal, episode = signals(99)
        found = threshold(signal, episode, rate=0.05, test_signal=test_signal, test_episode=test_episode)
        rates.append(found.alarm_rate.value)
        assert found.alarm_rate.low <= found.alarm_rate.value <= found.alarm_rate.high
    assert 0.03 < np.mean(rates) <= 0.05


def test_signal_that_never_varies_never_alarms() -> None:
    episode = np.repeat(np.arange(99), 3)
    found = threshold(np.zeros(297), episode, rate=0.01, test_signal=np.zeros(297), test_episode=episode)
    assert (found.value, found.alarm_rate.value) == (0, 0)


@pytest.mark.parametrize(
    ("rate", "episodes", "words"),
    [
        (0.01, 98, "use --false-alarm-rate 0.0102 or more, or --episodes 99 or more"),
        (0.001, 40, "use --false-alarm-rate 0.0244 or more, or --episodes 999 or more"),
        (0.3, 2, "use --false-alarm-rate 0.3334 or more, or --episodes 3 or more"),
    ],
)
def test_rate_too_rare_for_the_episodes_is_refused_and_either_cure_helps(
    rate: float, episodes: int, words: str
) -> None:
    with pytest.raises(CalibrationError, match=f"--false-alarm-rate {rate:g} is too rare for {episodes} .*{words}"):
        require_false_alarm_rate(rate, episodes)
    larger, more = re.findall(r" ([0-9.]+) or more", words)
    require_false_alarm_rate(float(larger), episodes)
    require_false_alarm_rate(rate, int(more))
    signal = np.arange(3.0 * episodes)
    episode = np.repeat(np.arange(episodes), 3)
    found = threshold(signal, episode, rate=float(larger), test_signal=signal, test_episode=episode)
    assert np.isfinite(found.value)


def falling_episodes(calm: int, always: int) -> Ticks:
    """Ten ticks each, all of them before a fall: in some episodes 10 steps to 1, in the others always 1."""
    episode = np.repeat(np.arange(calm + always), 10)
    left = np.where(episode < always, 1.0, 10.0 - np.arange(len(episode)) % 10)
    return ticks_of(episode, steps_to_fall=left)


def test_marks_are_of_ticks_that_no_fall_follows() -> None:
    """The signal rises before every fall: counted as false alarms these ticks would lift the mark until it is silent."""
    held_out, test = falling_episodes(99, 5), falling_episodes(30, 5)
    calm, test_calm, reason = ticks_without_a_fall(held_out, test, horizon=3, rate=0.01)
    assert reason is None
    np.testing.assert_array_equal(calm, held_out.steps_to_fall > 3)
    np.testing.assert_array_equal(test_calm, test.steps_to_fall > 3)
    assert len(np.unique(held_out.episode[calm])) == 99


@pytest.mark.parametrize(("calibration", "tests"), [((98, 5), (30, 5)), ((99, 5), (0, 30))])
def test_where_nearly_every_tick_is_before_a_fall_all_count_and_it_is_said(
    calibration: tuple[int, int], tests: tuple[int, int]
) -> None:
    held_out, test = falling_episodes(*calibration), falling_episodes(*tests)
    calm, test_calm, reason = ticks_without_a_fall(held_out, test, horizon=3, rate=0.01)
    assert calm.all()
    assert test_calm.all()
    assert reason is not None
    assert f"{calibration[0]} of {sum(calibration)} calibration and {tests[0]} of {sum(tests)} test episodes" in reason
    assert "--failure-horizon-s" in reason
