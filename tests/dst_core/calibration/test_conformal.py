"""Conformal correction over episodes: its guarantee on exact simulations, and its parts against plain loops."""

import math

import numpy as np
import pytest

from dst_core.calibration.by_episode import episode_weights
from dst_core.calibration.conformal import (
    STD_FLOOR,
    bound_above,
    corrected,
    episodes_needed,
    offsets,
    require_episodes,
)
from dst_core.errors import CalibrationError

LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
EPISODES = 40


def hierarchical(rng: np.random.Generator, episodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (R,) that hardly differ within an episode, skewed between episodes; long episodes have low ones."""
    centre = rng.exponential(size=episodes)
    lengths = np.where(centre > 1, 3, 30)
    episode = np.repeat(np.arange(episodes), lengths)
    return centre[episode] + 0.05 * rng.standard_normal(len(episode)), episode


def overconfident(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of a narrow normal law in the wrong place, (R, Q), and its standard deviation."""
    normal = np.array([-1.96, -1.645, -1.2816, -0.6745, 0.0, 0.6745, 1.2816, 1.645, 1.96])
    return np.tile(0.3 + 0.2 * normal, (count, 1)), np.full(count, 0.2)


def share_below(realised: np.ndarray, quantiles: np.ndarray, episode: np.ndarray) -> np.ndarray:
    """Probability that a random tick of a random episode is at most each quantile, (Q,)."""
    return episode_weights(episode) @ (realised[:, None] <= quantiles)


def test_corrected_quantiles_keep_their_promise_on_average_where_raw_ones_are_far_off() -> None:
    rng = np.random.default_rng(0)
    test_realised, test_episode = hierarchical(rng, 10_000)
    raw, std = overconfident(len(test_realised))
    repeated = []
    for _ in range(300):
        realised, episode = hierarchical(rng, EPISODES)
        found = offsets(realised, *overconfident(len(realised)), episode, LEVELS)
        quantiles = corrected(raw[:1], std[:1], found, LEVELS)
        repeated.append(share_below(test_realised, quantiles, test_episode))
    below = np.mean(repeated, 0)
    error = np.std(repeated, 0) / math.sqrt(len(repeated))
    upper, lower = np.array(LEVELS) > 0.5, np.array(LEVELS) < 0.5
    assert (below - LEVELS + 3 * error)[upper].min() >= 0
    assert (below - LEVELS - 3 * error)[lower].max() <= 0
    assert np.abs(below - LEVELS).max() < 2 / (EPISODES + 1)
    assert below[7] - below[1] > 0.9
    of_raw = share_below(test_realised, raw[:1], test_episode)
    assert of_raw[7] - of_raw[1] < 0.5


def test_ticks_taken_for_exchangeable_would_break_the_promise() -> None:
    """Each tick as its own episode: the many ticks of long episodes outvote the episodes that matter."""
    rng = np.random.default_rng(1)
    test_realised, test_episode = hierarchical(rng, 20_000)
    by_episode, by_tick = [], []
    for _ in range(100):
        realised, episode = hierarchical(rng, EPISODES)
        for means, grouping in ((by_episode, episode), (by_tick, np.arange(len(realised)))):
            bound = np.array([bound_above(realised, grouping, 0.9)])
            means.append(share_below(test_realised, bound, test_episode)[0])
    assert np.mean(by_episode) >= 0.9
    assert np.mean(by_tick) < 0.8


def naive_offset(scores: np.ndarray, episode: np.ndarray, level: float) -> float:
    """Over every candidate: the least whose weighted share of scores reaches the level; mirrored below the median."""
    if level < 0.5:
        return -naive_offset(-scores, episode, 1 - level)
    episodes = sorted(set(episode.tolist()))
    whole = len(episodes) if level == 0.5 else len(episodes) + 1
    for candidate in sorted(scores.tolist()):
        share = 0.0
        for one in episodes:
            own = scores[episode == one]
            share += sum(score <= candidate for score in own) / len(own) / whole
        if share >= level - 1e-9:
            return candidate
    return math.inf


def test_offsets_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    episode = np.repeat(np.arange(45), rng.integers(1, 9, 45))
    realised = rng.standard_normal(len(episode)).round(1)
    raw = np.sort(rng.standard_normal((len(episode), len(LEVELS))), 1)
    std = rng.uniform(0, 2, len(episode))
    std[:5] = 0.0
    found = offsets(realised, raw, std, episode, LEVELS)
    for column, level in enumerate(LEVELS):
        scores = (realised - raw[:, column]) / np.maximum(std, STD_FLOOR)
        assert found[column] == naive_offset(scores, episode, level)


def test_offsets_mirror_when_returns_do() -> None:
    rng = np.random.default_rng(3)
    realised, episode = hierarchical(rng, EPISODES)
    raw, std = overconfident(len(realised))
    mirrored = offsets(-realised, -raw[:, ::-1], std, episode, LEVELS)
    sides = [index for index, level in enumerate(LEVELS) if level != 0.5]
    found = offsets(realised, raw, std, episode, LEVELS)
    np.testing.assert_allclose(mirrored[::-1][sides], -found[sides])


def test_least_number_of_episodes_reaches_the_extreme_level_and_one_fewer_is_refused() -> None:
    assert episodes_needed(LEVELS) == 39
    assert episodes_needed((0.99,)) == 99
    rng = np.random.default_rng(4)
    for episodes in (39, 38):
        episode = np.repeat(np.arange(episodes), 3)
        values = rng.standard_normal(len(episode))
        raw, std = overconfident(len(episode))
        if episodes == 39:
            assert np.isfinite(offsets(values, raw, std, episode, LEVELS)).all()
            assert bound_above(values, episode, 0.975) == values.max()
        else:
            assert bound_above(values, episode, 0.975) == math.inf
            with pytest.raises(CalibrationError, match=r"38 calibration episodes.*level 0\.025.*at least 39"):
                offsets(values, raw, std, episode, LEVELS)
    with pytest.raises(CalibrationError, match=r"98 calibration episodes.*at least 99; use --episodes 99"):
        require_episodes(98, (0.99,))


def test_corrected_quantiles_move_by_their_offset_and_only_ever_outward_from_the_median() -> None:
    rng = np.random.default_rng(5)
    raw = np.sort(rng.standard_normal((200, len(LEVELS))), 1)
    std = rng.uniform(0, 1, 200)
    shift = rng.standard_normal(len(LEVELS))
    result = corrected(raw, std, shift, LEVELS)
    moved = raw + shift * np.maximum(std, STD_FLOOR)[:, None]
    assert (np.diff(result, axis=1) >= 0).all()
    assert (result[:, 4] == moved[:, 4]).all()
    assert (result[:, 5:] >= moved[:, 5:]).all()
    assert (result[:, :4] <= moved[:, :4]).all()
    for row, plain in zip(result, moved, strict=True):
        for column in range(len(LEVELS)):
            inward = plain[4 : column + 1] if column >= 4 else plain[column:5]
            assert row[column] == (inward.max() if column >= 4 else inward.min())


def test_certain_law_is_corrected_in_units_of_the_floor() -> None:
    result = corrected(np.zeros((1, 3)), np.zeros(1), np.array([-2e6, 0.0, 3e6]), (0.1, 0.5, 0.9))
    np.testing.assert_allclose(result, [[-2.0, 0.0, 3.0]])
