"""Scores against plain loops and closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from dst_core.calibration.by_episode import (
    draw_ticks,
    episode_means,
    episode_weights,
    estimate,
    estimates,
    mean_and_std,
    renumbered,
)
from dst_core.calibration.scores import (
    PIT_BINS,
    central_columns,
    energy_score,
    ensemble_crps,
    pit_histogram,
    quantile_crps,
    score,
)
from dst_core.errors import CalibrationError
from dst_core.summary import RETURN_LEVELS

QUANTILE_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
LEVELS = (0.5, 0.9)


def drawn(episodes: int = 12) -> tuple[np.random.Generator, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng, np.repeat(np.arange(episodes), rng.integers(1, 7, episodes))


def over_episodes(values: list[float], episode: np.ndarray) -> float:
    means = []
    for one in range(episode.max() + 1):
        own = [value for value, its in zip(values, episode, strict=True) if its == one]
        means.append(sum(own) / len(own))
    return sum(means) / len(means)


def test_weights_give_every_episode_its_share_and_every_tick_of_it_as_much() -> None:
    episode = np.array([0, 0, 0, 1, 2, 2])
    np.testing.assert_allclose(episode_weights(episode), np.array([1 / 3, 1 / 3, 1 / 3, 1, 1 / 2, 1 / 2]) / 3)
    values = np.array([[1.0, 0], [2, 0], [6, 0], [5, 1], [1, 0], [2, 1]])
    np.testing.assert_allclose(episode_means(values, episode), [[3, 0], [5, 1], [1.5, 0.5]])


def test_mean_and_standard_deviation_are_those_of_episodes_that_count_alike() -> None:
    values, episode = np.array([2.0, 2, 2, 2, 6, 8]), np.array([0, 0, 0, 0, 1, 2])
    mean, std = mean_and_std(values, episode)
    assert mean == pytest.approx(16 / 3)
    assert std == pytest.approx(np.std([2, 6, 8]))


def test_ticks_are_drawn_as_often_from_a_short_episode_as_from_a_long_one() -> None:
    episode = np.repeat([0, 1], [990, 10])
    drawn = draw_ticks(episode, 1000)
    assert abs((episode[drawn] == 1).mean() - 0.5) < 5 * 0.5 / math.sqrt(1000)
    assert len(np.unique(drawn[episode[drawn] == 1])) == 10


def test_episodes_without_ticks_lose_their_number() -> None:
    assert renumbered(np.array([1, 1, 4, 6, 6])).tolist() == [0, 0, 1, 2, 2]


def test_interval_of_an_estimate_is_that_of_the_mean_over_independent_episodes() -> None:
    rng = np.random.default_rng(1)
    episode = np.repeat(np.arange(400), 20)
    values = 3 + rng.standard_normal(400)[episode]
    found = estimate(values, episode)
    means = episode_means(values, episode)
    assert found.value == pytest.approx(means.mean())
    half = 1.96 * means.std() / math.sqrt(400)
    assert found.low == pytest.approx(means.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(means.mean() + half, abs=0.1 * half)
    assert estimate(values, episode) == found


def test_intervals_hold_the_true_mean_about_19_times_in_20() -> None:
    rng = np.random.default_rng(2)
    episode = np.repeat(np.arange(60), 5)
    values = rng.standard_normal((60, 300))[episode]
    held = [found.low <= 0 <= found.high for found in estimates(values, episode)]
    assert 0.9 < np.mean(held) < 0.98


def test_scores_are_those_of_a_plain_loop() -> None:
    rng, episode = drawn()
    realised = rng.standard_normal(len(episode))
    quantiles = np.sort(rng.standard_normal((len(episode), 5)), 1)
    mean = rng.standard_normal(len(episode))
    realised[0] = quantiles[0, 3]  # on the edge of the half interval
    found = score(realised, quantiles, mean, episode, quantile_levels=QUANTILE_LEVELS, levels=LEVELS)
    for (low, high), coverage, width in zip(((1, 3), (0, 4)), found.coverage, found.width, strict=True):
        inside = [float(row[low] <= given <= row[high]) for given, row in zip(realised, quantiles, strict=True)]
        assert coverage.value == pytest.approx(over_episodes(inside, episode))
        assert coverage.low <= coverage.value <= coverage.high
        assert width == pytest.approx(over_episodes([row[high] - row[low] for row in quantiles], episode))
    pinball = [
        2
        * sum(
            part * (given - value) * (level - (given < value))
            for value, level, part in zip(row, QUANTILE_LEVELS, (0.15, 0.225, 0.25, 0.225, 0.15), strict=True)
        )
        for given, row in zip(realised, quantiles, strict=True)
    ]
    assert found.crps.value == pytest.approx(over_episodes(pinball, episode))
    assert found.bias.value == pytest.approx(over_episodes((realised - mean).tolist(), episode))
    assert found.centre == "mean"
    without = score(realised, quantiles, None, episode, quantile_levels=QUANTILE_LEVELS, levels=LEVELS)
    assert without.bias.value == pytest.approx(over_episodes((realised - quantiles[:, 2]).tolist(), episode))
    assert without.centre == "median"


@pytest.mark.parametrize("shift", [0.0, 1.0, -3.0])
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_crps_from_the_served_quantiles_of_a_normal_law_is_near_the_closed_form(shift: float, scale: float) -> None:
    """Realised returns are normal with standard deviation 1: E|X - G| - E|X - X'| / 2 with |.| of normal differences."""
    realised = norm.ppf((np.arange(4000) + 0.5) / 4000)
    quantiles = np.tile(shift + scale * norm.ppf(RETURN_LEVELS), (4000, 1))
    away = math.hypot(1, scale)
    between = away * (2 * norm.pdf(shift / away) + shift / away * (2 * norm.cdf(shift / away) - 1))
    assert quantile_crps(realised, quantiles, RETURN_LEVELS).mean() == pytest.approx(
        between - scale / math.sqrt(math.pi), rel=0.04
    )


def test_crps_of_samples_is_that_of_a_double_loop() -> None:
    rng, episode = drawn()
    realised, samples = rng.standard_normal(len(episode)), rng.standard_normal((len(episode), 6))
    each = [
        np.mean([abs(x - given) for x in row]) - np.mean([abs(x - other) for x in row for other in row]) / 2
        for given, row in zip(realised, samples, strict=True)
    ]
    assert ensemble_crps(realised, samples, episode).value == pytest.approx(over_episodes(each, episode))


def test_interval_without_its_quantiles_is_refused_with_those_that_have_them() -> None:
    assert central_columns(LEVELS, QUANTILE_LEVELS) == [(1, 3), (0, 4)]
    for level in (0.8, 0.0, -0.5, 1.0):
        with pytest.raises(CalibrationError, match=rf"0\.5, 0\.9, got {level:g}"):
            central_columns((0.5, level), QUANTILE_LEVELS)


def test_pit_of_a_true_law_is_flat_even_with_ties_and_that_of_a_low_one_is_high() -> None:
    rng = np.random.default_rng(3)
    count = 40_000
    episode = np.arange(count)
    for truth in (rng.standard_normal((count, 9)), rng.integers(0, 3, (count, 9)).astype(float)):
        shares = np.array(pit_histogram(truth[:, 0], truth[:, 1:], episode))
        assert len(shares) == PIT_BINS
        assert shares.sum() == pytest.approx(1)
        np.testing.assert_allclose(shares, 1 / PIT_BINS, atol=5 * math.sqrt(1 / PIT_BINS / count))
    low = np.array(pit_histogram(rng.standard_normal(count) + 1, rng.standard_normal((count, 8)), episode))
    assert low[-1] > 2 / PIT_BINS > low[0] * 4


def test_pit_counts_every_episode_once() -> None:
    episode = np.array([0] * 99 + [1])
    realised = np.array([-5.0] * 99 + [5.0])
    shares = pit_histogram(realised, np.zeros((100, 99)), episode)
    assert shares[0] == pytest.approx(0.5)
    assert shares[-1] == pytest.approx(0.5)


def test_energy_score_is_that_of_a_double_loop_in_standard_deviations_of_the_truth() -> None:
    rng = np.random.default_rng(4)
    true = rng.standard_normal((5, 3)) * [1, 10, 0.1]
    predicted, as_good = (rng.standard_normal((5, 4, 3)) * [1, 10, 0.1] for _ in range(2))
    found = energy_score(true, predicted, as_good)
    scale = true.std(0)
    for value, samples in ((found.law, predicted), (found.truth, as_good)):
        each = []
        for given, row in zip(true / scale, samples / scale, strict=True):
            to = np.mean([np.linalg.norm(x - given) for x in row])
            within = np.mean([np.linalg.norm(x - other) for x in row for other in row])
            each.append(to - within / 2)
        assert value == pytest.approx(np.mean(each))
