"""Averages over settings, interactions to a level, and ablations."""

import numpy as np
import pytest

from benchmarks.report.ablations import ablation_tables, normalised_difference
from benchmarks.report.aggregate import aggregate_tables, by_kind, normalised_score, probability_of_improvement
from benchmarks.report.interactions import interaction_ratio, interactions_tables
from benchmarks.report.settings import seeds as seeds_of
from benchmarks.report.settings import setting_tables
from benchmarks.report.study import study_of
from tests.benchmarks.report.tables import flat, made_run, results, seeds


def study(runs):
    return study_of(results(runs), reference="dst")


def test_scores_are_normalised_per_setting_before_they_are_averaged() -> None:
    made = study(
        [
            *seeds([100.0, 100.0]),
            *seeds([50.0, 50.0], variant="td3"),
            *seeds([1.0, 1.0], environment="Hopper-v5"),
            *seeds([0.1, 0.1], variant="td3", environment="Hopper-v5"),
        ]
    )
    assert normalised_score(made, made.algorithms, "dst") == (1.0, 1.0, 1.0)
    assert normalised_score(made, made.algorithms, "td3") == pytest.approx((0.3, 0.3, 0.3))


def test_normalised_score_at_equal_time_keeps_the_scale_of_equal_interactions() -> None:
    slow = {0: 0.0, 500: 2.0, 1000: 10.0, 1500: 10.0, 2000: 10.0}
    runs = [made_run(slow, seed=seed, seconds_per_step=0.04) for seed in (0, 1)]
    runs += [made_run(flat(5.0), seed=seed, variant="td3", seconds_per_step=0.01) for seed in (0, 1)]
    made = study(runs)
    assert made.algorithms[0].seconds.limit == 20.0, "of td3, in which dst makes 500 steps"
    assert normalised_score(made, made.algorithms, "dst") == (1.0, 1.0, 1.0)
    assert normalised_score(made, made.algorithms, "dst", unit="seconds") == pytest.approx((0.2, 0.2, 0.2))
    assert normalised_score(made, made.algorithms, "td3", unit="seconds") == pytest.approx((0.5, 0.5, 0.5))


def test_setting_tables_hold_both_budgets_and_the_cost_of_runs_that_were_not_cut_short() -> None:
    slow = {0: 0.0, 500: 2.0, 1000: 10.0, 1500: 10.0, 2000: 10.0}
    runs = [made_run(slow, seed=seed, seconds_per_step=0.04, bias=None) for seed in (0, 1)]
    runs += [made_run(flat(5.0), seed=seed, variant="td3", seconds_per_step=0.01, bias=0.25) for seed in (0, 1)]
    runs += [made_run({0: 0.0, 500: 9.0}, seed=2, variant="td3", status="diverged", seconds_per_step=0.01, bias=0.25)]
    text = setting_tables(study(runs))
    assert "| return at 2000 steps | spread | critic bias | CPU s | return within 20.0 CPU s | steps made |" in text
    assert "| dst | 2 of 3 | **10.0 (10.0 to 10.0)** | 0.00 | - | 80.0 | 2.00 (2.00 to 2.00) | 500 |" in text
    assert "| td3 | 3 | 3.33 (0.00 to 5.00) | 2.89 | 0.250 | 20.0 | **3.33 (0.00 to 5.00)** | 1500 |" in text


def test_kinds_are_those_of_the_data_and_settings_without_learning_are_left_out_by_name() -> None:
    runs = [*seeds([2.0, 2.0]), *seeds([3.0, 3.0], perturbation="observation=0.1")]
    runs += [*seeds([3.0, 3.0], perturbation="observation=0.2"), *seeds([-1.0, -1.0], perturbation="friction=0.3")]
    made = study(runs)
    assert {kind: len(group) for kind, group in by_kind(made).items()} == {"all": 3, "none": 1, "observation": 2}
    assert "Left out, since no variant was better than untrained: PointMass1-v0, friction=0.3." in aggregate_tables(
        made
    )
    assert "nothing can be normalised" in aggregate_tables(study(seeds([-1.0])))


def test_improvement_counts_settings_that_have_both() -> None:
    made = study(
        [
            *seeds([2.0, 3.0]),
            *seeds([1.0, 2.5], variant="td3"),
            *seeds([9.0, 9.0], perturbation="friction=0.3"),
        ]
    )
    chance = probability_of_improvement(made, made.algorithms, "td3")
    assert chance is not None
    assert chance.value == 0.75
    assert probability_of_improvement(made, made.algorithms, "mage") is None
    assert ", 1 of 2 settings" in aggregate_tables(made)


def at_last(step: int, value: float = 10.0) -> dict[int, float]:
    return {at: value if at >= step else 0.0 for at in range(0, 6500, 500)}


def test_interactions_and_their_ratio_count_runs_that_never_reach_the_level() -> None:
    runs = [made_run(at_last(1000), seed=seed) for seed in range(3)]  # 1000, 1500 and 2000 are good: 2000
    runs += [made_run(at_last(3000), variant="td3", seed=seed) for seed in range(3)]
    runs += [made_run(at_last(3000), variant="tqc", seed=0)]
    runs += [made_run(at_last(9000), variant="tqc", seed=seed) for seed in (1, 2)]
    made = study(runs)
    (comparison,) = made.algorithms
    assert comparison.interactions["td3"].tolist() == [4000.0] * 3
    assert interaction_ratio(made, comparison, "td3") == (0.5, 0.5, 0.5, 0.5)
    ratio = interaction_ratio(made, comparison, "tqc")
    assert (ratio.least, ratio.most) == (0.0, pytest.approx(2000 / 6000))
    text = interactions_tables(made)
    assert "| 2000, 3 of 3 | 4000, 3 of 3 | over 6000, 1 of 3 |" in text
    assert "0.50 (0.50 to 0.50)" in text
    assert "below 0.33 (0.00 to 0.50)" in text


def test_fewer_seeds_than_others_are_marked() -> None:
    (comparison,) = study([*seeds([1.0, 2.0, 3.0]), *seeds([1.0], variant="td3")]).algorithms
    assert [seeds_of(comparison, variant) for variant in ("dst", "td3")] == ["3", "1 of 3"]


def test_ablations_are_differences_to_their_algorithm() -> None:
    made = study(
        [
            *seeds([10.0, 10.0, 10.0]),
            *seeds([4.0, 4.0, 4.0], variant="dst, flow"),
            *seeds([99.0, 99.0, 99.0], variant="td3"),  # changes nothing: it is not in that comparison
        ]
    )
    assert normalised_difference(made, made.ablations, "dst, flow", "dst") == pytest.approx((-0.6, -0.6, -0.6))
    text = ablation_tables(made)
    assert "| dst, flow | 1 | -0.60 (-0.60 to -0.60) |" in text
    assert "| dst, flow | 3 | 2000 | 4.00 (4.00 to 4.00) | -6.00 (-6.00 to -6.00) |" in text
    assert "td3" not in text
    assert np.isclose(made.algorithms[0].best, 99.0)


def test_median_between_a_run_that_reached_the_level_and_one_that_did_not_is_told_as_far_as_known() -> None:
    reached, never = made_run({0: 0.0, 500: 10.0, 2000: 10.0}), made_run({0: 0.0, 500: 0.0, 2000: 0.0}, seed=1)
    made = study([reached, never, *seeds([9.0, 9.0], variant="td3")])
    assert "| over 1250, 1 of 2 |" in interactions_tables(made)  # (500 + something beyond 2000) / 2
