"""Estimates against closed forms, naive loops and rliable itself."""

import math

import numpy as np
import pytest
from rliable import library, metrics

from benchmarks.report.statistics import (
    DRAWS,
    SEED,
    draw,
    estimate,
    estimate_bounds,
    improvement,
    iqm,
    median_ratio,
    spread,
    spread_ratio,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([7.0], 7.0), ([1, 2, 30], 11.0), ([100, 1, 2, 3], 2.5), ([1, 2, 3, 4, 100], 3.0), (range(1, 9), 4.5)],
)
def test_interquartile_mean_of_known_numbers(scores: list[float], expected: float) -> None:
    assert float(iqm(np.array(scores, float))) == pytest.approx(expected)


def test_interquartile_mean_and_improvement_are_those_of_rliable() -> None:
    generator = np.random.default_rng(0)
    for runs in (2, 3, 5, 10):
        x, y = generator.integers(0, 6, (runs, 4)).astype(float), generator.integers(0, 6, (runs + 1, 4)).astype(float)
        assert float(iqm(*x.T)) == pytest.approx(metrics.aggregate_iqm(x))
        assert float(improvement(*x.T, *y.T)) == pytest.approx(metrics.probability_of_improvement(x, y))


@pytest.mark.parametrize(
    ("ours", "of_rliable"),
    [(iqm, metrics.aggregate_iqm), (lambda *cells: np.mean(np.stack(cells), axis=(0, -1)), metrics.aggregate_mean)],
    ids=["interquartile mean", "mean"],
)
def test_intervals_are_those_of_rliable_from_the_same_seed(ours, of_rliable) -> None:
    scores = np.random.default_rng(1).normal(size=(5, 3))
    draws = draw(dict.fromkeys("abc", 5))
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(SEED)  # noqa: NPY002
    points, intervals = library.get_interval_estimates(
        {"x": [scores]}, lambda table: np.array([of_rliable(table)]), reps=DRAWS
    )
    np.random.set_state(state)  # noqa: NPY002
    expected = (points["x"][0], *intervals["x"][:, 0])
    assert estimate(ours, list(scores.T), [draws[name] for name in "abc"]) == pytest.approx(expected)


def test_draws_are_the_same_every_time_and_leave_numpys_generator_alone() -> None:
    counts = {"a": 3, "b": 5, "c": 3, "d": 1}
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = draw(counts), draw(counts)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert {name: drawn.shape for name, drawn in first.items()} == {name: (DRAWS, n) for name, n in counts.items()}
    for name, count in counts.items():
        assert (first[name] == again[name]).all()
        assert set(np.unique(first[name])) == set(range(count))
    assert (first["a"] != first["c"]).any(), "cells are drawn on their own"


def test_every_run_is_drawn_equally_often() -> None:
    drawn = draw({"a": 5})["a"]
    shares = np.bincount(drawn.ravel(), minlength=5) / drawn.size
    assert shares == pytest.approx([0.2] * 5, abs=5 * math.sqrt(0.2 * 0.8 / drawn.size))


def test_interval_of_constants_is_a_point_and_one_run_has_none() -> None:
    draws = draw({"a": 4, "b": 1})
    assert estimate(iqm, [np.full(4, 3.5)], [draws["a"]]) == (3.5, 3.5, 3.5)
    assert estimate(iqm, [np.array([3.5])], [draws["b"]]) == (3.5, None, None)
    assert estimate(improvement, [np.ones(4), np.zeros(1)], [draws["a"], draws["b"]]) == (1.0, None, None)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(2)
    drawn = draw({"a": 30})["a"]
    estimates = [estimate(iqm, [generator.normal(size=30)], [drawn]) for _ in range(200)]
    covered = np.mean([low < 0 < high for _, low, high in estimates])
    assert 0.87 < covered < 0.99


def test_improvement_of_separated_scores_is_certain_and_of_equal_ones_even() -> None:
    high, low = np.array([3.0, 4.0, 5.0]), np.array([0.0, 1.0])
    draws = [np.zeros((DRAWS, 3), int), np.zeros((DRAWS, 2), int)]
    assert estimate(improvement, [high, low], draws) == (1.0, 1.0, 1.0)
    assert estimate(improvement, [low, high], draws[::-1]) == (0.0, 0.0, 0.0)
    assert float(improvement(low, low)) == 0.5
    assert float(improvement(high, low, low, low)) == 0.75, "mean over two settings: certain in one, even in the other"


def test_spread_has_n_minus_1_degrees_of_freedom() -> None:
    assert float(spread(np.array([1.0, 2.0, 6.0]))) == pytest.approx(math.sqrt((4 + 1 + 9) / 2))
    assert math.isnan(float(spread(np.array([1.0]))))


INF = math.inf


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([2, 4, 6], [8, 8, 8], (0.5, 0.5)),
        ([2, 4, 6], [8, INF, INF], (0, 0.4)),  # the peer needs more than 10, so the ratio is below 4 / 10
        ([2, INF, INF], [5, 5, 5], (2, INF)),  # the reference needs more than 10, so the ratio is above 10 / 5
        ([INF, INF], [INF, INF], (0, INF)),
        ([2, INF], [4, 4], (1.5, INF)),  # the median is half way between 2 and something above 10
    ],
)
def test_ratio_of_medians_is_bounded_where_runs_never_reached_the_level(x, y, expected) -> None:
    assert tuple(float(bound) for bound in median_ratio(np.array(x, float), np.array(y, float), limit=10.0)) == expected


def test_bounds_hold_whatever_the_runs_that_never_got_there_would_have_needed() -> None:
    generator = np.random.default_rng(3)
    for _ in range(200):
        needed = generator.uniform(1, 20, (2, 5))
        told = np.where(needed <= 10, needed, INF)
        least, most = median_ratio(told[0], told[1], limit=10.0)
        assert least <= np.median(needed[0]) / np.median(needed[1]) <= most


def test_interval_of_bounds_spans_from_the_least_to_the_most() -> None:
    draws = draw({"x": 5, "y": 5})
    x, y = np.array([2.0, 3.0, 4.0, 5.0, 6.0]), np.array([9.0, 9.0, INF, INF, INF])
    bounds = estimate_bounds(lambda x, y: median_ratio(x, y, limit=10.0), [x, y], [draws["x"], draws["y"]])
    assert (bounds.least, bounds.most) == (0.0, 0.4)
    assert bounds.low == 0.0
    assert bounds.high == 0.6, "a median of 6 (in 6 % of the draws) over 10 (two thirds of those)"


def test_ratio_of_spreads_is_open_where_neither_has_any() -> None:
    some, none = np.array([1.0, 3.0]), np.array([2.0, 2.0])
    assert tuple(map(float, spread_ratio(some, some))) == (1.0, 1.0)
    assert tuple(map(float, spread_ratio(none, some))) == (0.0, 0.0)
    assert tuple(map(float, spread_ratio(some, none))) == (INF, INF)
    assert tuple(map(float, spread_ratio(none, none))) == (0.0, INF)
