"""Conformal correction over episodes: its guarantee on exact simulations, and its parts against plain loops."""

import math

import numpy as np
import pytest

from dst_core.calibration.by_episode import episode_weights
from dst_core.calibration.conformal import (
    LEAST_FLOOR,
    SPREAD_SHARE,
    bound_above,
    corrected,
    episodes_needed,
    first_position,
    last_position,
    positions,
    require_episodes,
    std_floor,
)
from dst_core.errors import CalibrationError

LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
EPISODES = 40
FLOOR = 0.01


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
        found = positions(realised, *overconfident(len(realised)), episode, LEVELS, floor=FLOOR)
        quantiles = corrected(raw[:1], std[:1], found, LEVELS, floor=FLOOR)
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


def naive_bound(scores: np.ndarray, episode: np.ndarray, level: float) -> float:
    """Over every candidate: the least whose weighted share of scores reaches the level; mirrored below the median."""
    if level < 0.5:
        return -naive_bound(-scores, episode, 1 - level)
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


def curve(position: float, raw: np.ndarray, std: float) -> float:
    """The predicted quantile curve, written plainly."""
    if position <= LEVELS[0]:
        return float(raw[0] + (position - LEVELS[0]) * max(std, FLOOR))
    if position >= LEVELS[-1]:
        return float(raw[-1] + (position - LEVELS[-1]) * max(std, FLOOR))
    right = next(index for index, level in enumerate(LEVELS) if level >= position)
    share = (position - LEVELS[right - 1]) / (LEVELS[right] - LEVELS[right - 1])
    return float(raw[right - 1] + share * (raw[right] - raw[right - 1]))


def test_curve_at_a_values_position_is_the_value() -> None:
    rng = np.random.default_rng(6)
    raw = np.sort(rng.standard_normal((500, len(LEVELS))), 1)
    std, value = rng.uniform(0.1, 2, 500), 2 * rng.standard_normal(500)
    for position in (first_position, last_position):
        places = position(value, raw, std, LEVELS, floor=FLOOR)
        found = [curve(*row) for row in zip(places.tolist(), raw, std.tolist(), strict=True)]
        np.testing.assert_allclose(found, value, atol=1e-9)


def test_value_on_a_flat_piece_of_the_curve_has_its_first_and_its_last_position() -> None:
    raw = np.array([[-2.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0]])
    at, std = np.zeros(1), np.ones(1)
    assert first_position(at, raw, std, LEVELS, floor=FLOOR) == LEVELS[2]
    assert last_position(at, raw, std, LEVELS, floor=FLOOR) == pytest.approx(LEVELS[5])


def test_positions_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(2)
    episode = np.repeat(np.arange(45), rng.integers(1, 9, 45))
    realised = rng.standard_normal(len(episode)).round(1)
    raw = np.sort(rng.standard_normal((len(episode), len(LEVELS))), 1).round(1)
    std = rng.uniform(0, 2, len(episode))
    std[:5] = 0.0
    found = positions(realised, raw, std, episode, LEVELS, floor=FLOOR)
    first, last = (position(realised, raw, std, LEVELS, floor=FLOOR) for position in (first_position, last_position))
    assert (first <= last + 1e-12).all()
    assert (first < last - 0.01).any()
    for column, level in enumerate(LEVELS):
        assert found[column] == naive_bound(last if level < 0.5 else first, episode, level)


def test_positions_mirror_when_returns_do() -> None:
    rng = np.random.default_rng(3)
    realised, episode = hierarchical(rng, EPISODES)
    raw, std = overconfident(len(realised))
    mirrored = positions(-realised, -raw[:, ::-1], std, episode, LEVELS, floor=FLOOR)
    sides = [index for index, level in enumerate(LEVELS) if level != 0.5]
    found = positions(realised, raw, std, episode, LEVELS, floor=FLOOR)
    np.testing.assert_allclose(mirrored[::-1][sides], 1 - found[sides])


def test_least_number_of_episodes_reaches_the_extreme_level_and_one_fewer_is_refused() -> None:
    assert episodes_needed(LEVELS) == 39
    assert episodes_needed((0.99,)) == 99
    rng = np.random.default_rng(4)
    for episodes in (39, 38):
        episode = np.repeat(np.arange(episodes), 3)
        values = rng.standard_normal(len(episode))
        raw, std = overconfident(len(episode))
        if episodes == 39:
            assert np.isfinite(positions(values, raw, std, episode, LEVELS, floor=FLOOR)).all()
            assert bound_above(values, episode, 0.975) == values.max()
        else:
            assert bound_above(values, episode, 0.975) == math.inf
            with pytest.raises(CalibrationError, match=r"38 calibration episodes.*level 0\.025.*at least 39"):
                positions(values, raw, std, episode, LEVELS, floor=FLOOR)
    with pytest.raises(CalibrationError, match=r"98 calibration episodes.*at least 99; use --episodes 99"):
        require_episodes(98, (0.99,))


def test_corrected_quantiles_are_the_curve_at_the_positions_and_never_cross() -> None:
    rng = np.random.default_rng(5)
    raw = np.sort(rng.standard_normal((200, len(LEVELS))), 1)
    std = rng.uniform(0, 1, 200)
    places = np.sort(rng.normal(0.5, 1, len(LEVELS)))
    result = corrected(raw, std, places, LEVELS, floor=FLOOR)
    assert (np.diff(result, axis=1) >= 0).all()
    for found, row, spread in zip(result, raw, std.tolist(), strict=True):
        np.testing.assert_allclose(found, [curve(place, row, spread) for place in places.tolist()], atol=1e-9)


def test_correction_that_narrows_one_kind_of_state_and_widens_another_holds_its_share_of_both_together() -> None:
    """Where quantiles that crossed were pushed apart, intervals held more than was asked."""
    rng = np.random.default_rng(7)
    episode = np.repeat(np.arange(2000), 2)
    calm = np.tile([True, False], 2000)
    realised = np.where(calm, 2.0 + 0.01 * rng.standard_normal(4000), rng.standard_normal(4000))
    raw, std = np.tile(overconfident(1)[0] * 5 - 1.5, (4000, 1)), np.ones(4000)
    found = positions(realised, raw, std, episode, LEVELS, floor=FLOOR)
    quantiles = corrected(raw, std, found, LEVELS, floor=FLOOR)
    below = share_below(realised, quantiles, episode)
    np.testing.assert_allclose(below, LEVELS, atol=0.002)


def test_certain_law_is_corrected_in_units_of_the_floor() -> None:
    places = np.array([0.1 - 200, 0.5, 0.9 + 300])
    result = corrected(np.zeros((1, 3)), np.zeros(1), places, (0.1, 0.5, 0.9), floor=FLOOR)
    np.testing.assert_allclose(result, [[-2.0, 0.0, 3.0]])


@pytest.mark.parametrize("unit", [1e-2, 1.0, 1e4])
def test_floor_is_a_share_of_the_spread_of_returns_in_any_unit_and_each_episode_counts_once(unit: float) -> None:
    episode = np.array([0, 1, 1, 1])
    assert std_floor(unit * np.array([0.0, 2.0, 2.0, 2.0]), episode) == pytest.approx(SPREAD_SHARE * unit)


def test_returns_that_never_vary_leave_a_floor_that_can_be_divided_by() -> None:
    assert std_floor(np.full(4, 995.0), np.arange(4)) == LEAST_FLOOR


def test_law_with_a_spread_of_its_own_is_corrected_as_if_there_were_no_floor() -> None:
    realised, episode = hierarchical(np.random.default_rng(8), EPISODES)
    raw, std = overconfident(len(realised))
    floor = std_floor(realised, episode)
    assert floor < std.min()
    with_floor, without = (positions(realised, raw, std, episode, LEVELS, floor=least) for least in (floor, 1e-300))
    assert with_floor.tolist() == without.tolist()
    with_floor, without = (corrected(raw, std, with_floor, LEVELS, floor=least) for least in (floor, 1e-300))
    assert np.array_equal(with_floor, without)


def collapsing(realised: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`overconfident`, but at a share of the ticks quite certain of a return that is not the realised one."""
    raw, std = overconfident(len(realised))
    certain = rng.random(len(realised)) < share
    return np.where(certain[:, None], 0.3, raw), np.where(certain, 0.0, std)


@pytest.mark.parametrize("share", [0.2, 1.0])
def test_law_that_collapses_keeps_its_promise_with_positions_of_the_size_of_its_error_over_the_floor(
    share: float,
) -> None:
    rng = np.random.default_rng(9)
    test_realised, test_episode = hierarchical(rng, 3000)
    said = collapsing(test_realised, share, rng)
    repeated = []
    for _ in range(200):
        floor = std_floor(*hierarchical(rng, 20))
        realised, episode = hierarchical(rng, EPISODES)
        found = positions(realised, *collapsing(realised, share, rng), episode, LEVELS, floor=floor)
        assert np.abs(found).max() <= 1 + np.abs(realised - 0.3).max() / floor < 2e4
        repeated.append(share_below(test_realised, corrected(*said, found, LEVELS, floor=floor), test_episode))
    below = np.mean(repeated, 0)
    error = np.std(repeated, 0) / math.sqrt(len(repeated)) + 0.01  # of these test episodes
    upper, lower = np.array(LEVELS) > 0.5, np.array(LEVELS) < 0.5
    assert (below - LEVELS + 3 * error)[upper].min() >= 0
    assert (below - LEVELS - 3 * error)[lower].max() <= 0
