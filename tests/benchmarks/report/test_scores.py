"""What a run is worth: budgets, windows, diverged runs, levels."""

import math

import numpy as np
import pytest

from benchmarks.report.runs import Run, runs_of
from benchmarks.report.scores import Budget, bias, common_budget, interactions_to, score, spent_within, untrained_return
from tests.benchmarks.report.tables import flat, made_run, results


def run_of(returns, **of_run) -> Run:
    filler = made_run({0: 0.0, 1: 0.0}, variant="filler", seed=99)  # results without any evaluation are refused
    return next(run for run in runs_of(results([made_run(returns, **of_run), filler])) if run.seed != 99)


def steps(limit: float) -> Budget:
    return Budget(unit="steps", limit=limit)


RETURNS = {0: -9.0, 500: 1.0, 1000: 2.0, 1500: 4.0, 2000: 8.0, 2500: 100.0}


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(2000, (2 + 4 + 8) / 3), (2499, (2 + 4 + 8) / 3), (1000, (1 + 2) / 2), (500, 1.0), (499, -9.0), (0, -9.0)],
)
def test_score_is_the_mean_of_the_last_three_evaluations_within_the_budget(limit: float, expected: float) -> None:
    assert score(run_of(RETURNS), steps(limit), untrained=0.0) == pytest.approx(expected)


def test_computing_time_is_a_budget_as_steps_are() -> None:
    run = run_of(RETURNS, seconds_per_step=0.02)
    assert score(run, Budget(unit="seconds", limit=40.0), untrained=0.0) == pytest.approx((2 + 4 + 8) / 3)
    assert spent_within(run, Budget(unit="seconds", limit=39.9), "steps") == 1500
    assert spent_within(run, steps(1999), "seconds") == 30.0


def test_common_budget_is_that_of_the_finished_run_that_ends_first() -> None:
    runs = [
        run_of(flat(1.0, steps=(500, 4000)), seconds_per_step=0.001),
        run_of(flat(1.0, steps=(500, 3000)), seconds_per_step=0.1),
        run_of(flat(1.0, steps=(500,)), status="diverged"),
    ]
    assert common_budget("steps", runs).limit == 3000
    assert common_budget("seconds", runs).limit == pytest.approx(4.0)


@pytest.mark.parametrize(("own", "untrained", "expected"), [(5.0, 1.0, 1.0), (-5.0, 1.0, -5.0)])
def test_run_that_diverged_within_the_budget_is_worth_no_more_than_untrained(
    own: float, untrained: float, expected: float
) -> None:
    run = run_of(flat(own, steps=(500, 1000)), status="diverged")
    assert score(run, steps(2000), untrained=untrained) == expected
    assert score(run, Budget(unit="seconds", limit=10.01), untrained=untrained) == expected


def test_run_that_diverged_after_the_budget_is_scored_as_others() -> None:
    run = run_of(flat(5.0, steps=(500, 1000)), status="diverged")
    assert score(run, steps(1000), untrained=1.0) == 5.0


def test_run_that_diverged_before_any_evaluation_is_worth_the_untrained_return() -> None:
    assert score(run_of({}, status="diverged"), steps(1000), untrained=-3.0) == -3.0


def test_untrained_return_is_the_mean_at_step_0_over_runs_that_have_one() -> None:
    runs = [run_of({0: 1.0, 500: 7.0}), run_of({0: 4.0, 500: 7.0}), run_of({500: 7.0})]
    assert untrained_return(runs) == 2.5
    assert math.isnan(untrained_return(runs[2:]))


def test_bias_is_that_of_the_scored_evaluations_that_tell_one() -> None:
    row, evaluations = made_run(RETURNS)
    for evaluation, value in zip(evaluations, (50.0, 40.0, 1.0, None, 3.0, 60.0), strict=True):
        evaluation["critic_bias"] = value
    (run,) = runs_of(results([(row, evaluations)]))
    assert bias(run, steps(2000)) == 2.0
    assert math.isnan(bias(run_of(RETURNS, bias=None), steps(2000)))


def naive_interactions(returns: dict[int, float], level: float, limit: float) -> float:
    trained = [(step, value) for step, value in sorted(returns.items()) if step > 0]
    for index, (step, _) in enumerate(trained):
        window = [value for _, value in trained[max(0, index - 2) : index + 1]]
        if step <= limit and sum(window) / len(window) >= level:
            return step
    return math.inf


def test_interactions_to_a_level_agree_with_a_naive_loop_and_censor_what_comes_later() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        returns = dict(zip(range(0, 5500, 500), generator.normal(size=11).cumsum().tolist(), strict=True))
        level, limit = float(generator.normal()), float(generator.integers(0, 6000))
        assert interactions_to(level, run_of(returns), steps=limit) == naive_interactions(returns, level, limit)
    assert interactions_to(4.0, run_of(RETURNS), steps=1500) == math.inf
    assert interactions_to(4.0, run_of(RETURNS), steps=2000) == 2000
    assert interactions_to(1.5, run_of(RETURNS), steps=2000) == 1000, "a score equal to the level reaches it"


def test_evaluations_without_a_finite_return_are_left_out_and_counted() -> None:
    run = run_of({0: 0.0, 500: None, 1000: float("nan"), 1500: float("inf"), 2000: 3.0, 2500: 5.0})
    assert run.curve.steps.tolist() == [0, 2000, 2500]
    assert run.blank == 3
    assert score(run, steps(2500), untrained=0.0) == 4.0


def test_only_failed_runs_and_finished_ones_without_a_return_are_left_out() -> None:
    assert run_of(RETURNS).why_left_out == ""
    assert run_of({}, status="diverged").why_left_out == ""
    assert run_of(RETURNS, status="failed", error="no space\nleft").why_left_out == "failed: no space left"
    assert "finite return" in run_of({0: 1.0, 500: None}).why_left_out
