"""What is compared with what."""

import re

import numpy as np
import pytest

from benchmarks.report.errors import ReportError
from benchmarks.report.overview import missing_seeds, overview
from benchmarks.report.runs import Setting, runs_of
from benchmarks.report.study import study_of
from tests.benchmarks.report.tables import flat, made_run, results, seeds


def study(runs, reference="dst"):
    return study_of(results(runs), reference=reference)


def test_ablations_are_compared_with_their_algorithm_only_but_max_sliced_in_both() -> None:
    names = ["td3", "dst, flow", "dst", "dst, max-sliced", "tqc, biased", "tqc"]
    made = study([run for name in names for run in seeds([1.0, 2.0], variant=name)])
    assert [comparison.variants for comparison in made.algorithms] == [("dst", "dst, max-sliced", "td3", "tqc")]
    assert [comparison.variants for comparison in made.ablations] == [
        ("dst", "dst, flow", "dst, max-sliced"),
        ("tqc", "tqc, biased"),
    ]
    assert made.peers == ("dst, max-sliced", "td3", "tqc")


def test_each_comparison_has_the_budget_of_its_own_runs() -> None:
    made = study(
        [
            made_run(flat(1.0, steps=(500, 4000))),
            made_run(flat(1.0, steps=(500, 3000)), variant="td3", seconds_per_step=0.001),
            made_run(flat(1.0, steps=(500, 2000)), variant="dst, flow"),
        ]
    )
    assert made.algorithms[0].steps.limit == 3000
    assert made.algorithms[0].seconds.limit == pytest.approx(3.0)
    assert made.ablations[0].steps.limit == 2000


def test_a_level_reached_after_equal_interactions_is_not_reached() -> None:
    late = {step: 10.0 if step >= 4000 else 0.0 for step in range(0, 8500, 500)}
    runs = [made_run(flat(10.0, steps=(500, 1000))), made_run(late, variant="td3"), made_run(late, variant="dst, flow")]
    assert study(runs).algorithms[0].interactions["td3"].tolist() == [np.inf]
    assert study([*runs[1:2], made_run(late)]).algorithms[0].interactions["td3"].tolist() == [5000.0]


def test_normalised_scores_are_0_untrained_and_1_at_the_best_interquartile_mean() -> None:
    runs = [made_run(flat(value, untrained=-10.0), seed=seed) for seed, value in enumerate([0.0, 10.0, 20.0, 30.0])]
    runs += [made_run(flat(-10.0, untrained=-10.0), variant="td3")]
    (comparison,) = study(runs).algorithms
    assert comparison.untrained == -10.0
    assert comparison.best == 15.0
    assert comparison.level == -10 + 0.8 * 25
    assert comparison.normalised("dst") == pytest.approx(np.array([10, 20, 30, 40]) / 25)
    assert comparison.normalised("td3") == pytest.approx([0.0])


def test_settings_are_compared_apart_the_undisturbed_first() -> None:
    where = [("PointMass2-v0", "a=1"), ("PointMass2-v0", "none"), ("Hopper-v5", "none")]
    made = study([made_run(flat(1.0), environment=env, perturbation=noise) for env, noise in where])
    assert [comparison.setting for comparison in made.algorithms] == [Setting(*pair) for pair in reversed(where)]
    assert Setting("X", "observation=0.2 dynamics=0.05").kind == "observation + dynamics"


def test_failed_runs_are_missing_seeds_and_named_and_diverged_ones_count() -> None:
    made = study(
        [
            *seeds([1.0, 2.0, 3.0]),
            made_run(flat(1.0), variant="td3", seed=0),
            made_run(flat(1.0), variant="td3", seed=1, status="failed", error="no memory"),
            made_run({0: 0.0}, variant="tqc", seed=0, status="diverged", error="loss is not finite"),
            *seeds([1.0, 2.0, 3.0], variant="tqc")[1:],
        ]
    )
    (comparison,) = made.algorithms
    assert {variant: len(runs) for variant, runs in comparison.runs.items()} == {"dst": 3, "td3": 1, "tqc": 3}
    assert missing_seeds(made.runs) == {"td3": {1: "failed: no memory", 2: "not in the results"}}
    text = overview(made)
    assert "PointMass1-v0/none/td3/seed-1 failed: no memory" in text
    assert "PointMass1-v0/none/tqc/seed-0 diverged: loss is not finite" in text
    assert "PointMass1-v0, none, td3: 1 failed: no memory; 2 not in the results" in text


def test_settings_that_cannot_be_compared_are_named_with_the_reason() -> None:
    made = study(
        [
            made_run(flat(1.0)),
            made_run({500: 1.0}, environment="Hopper-v5"),
            made_run({0: 1.0}, environment="Ant-v5", status="diverged"),
            made_run(flat(1.0), environment="Swimmer-v5", variant="td3, flow"),
        ]
    )
    told = {str(setting): why for setting, why in made.not_compared}
    assert "step 0" in told["Hopper-v5, none"]
    assert "no run of dst finished" in told["Ant-v5, none"]
    assert "Ant-v5, none: no run of dst finished there" in overview(made)
    whys = [why for setting, why in made.not_compared if setting.environment == "Swimmer-v5"]
    assert any("no run of td3 counts" in why for why in whys)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "hold no run"),
        ([made_run(flat(1.0)), made_run(flat(1.0))], "PointMass1-v0/none/dst/seed-0 more than once"),
        ([made_run({}, status="failed", error="x")], "no run has an evaluation"),
        ([made_run({0: None, 500: float("nan")})], "no run has an evaluation"),
        ([made_run(flat(1.0), variant="td3")], "no variant 'dst'; name another with --reference: td3"),
        ([made_run({500: 1.0})], "no setting can be compared: PointMass1-v0, none: no run was evaluated at step 0"),
    ],
)
def test_results_that_no_page_can_be_made_from_are_refused_with_the_reason(runs, message: str) -> None:
    with pytest.raises(ReportError, match=re.escape(message)):
        study(runs)


def test_runs_keep_the_order_of_the_tables() -> None:
    made = runs_of(results(seeds([1.0, 2.0, 3.0])))
    assert [run.seed for run in made] == [0, 1, 2]
