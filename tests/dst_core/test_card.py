"""The policy card says what was measured, and first of all what was not."""

import dataclasses
import json
import re
from typing import Any

import pytest

from dst_core.calibration.result import Calibration, Estimate
from dst_core.card import Record, card_json, policy_card
from tests.dst_core.calibration.results import made_up_calibration

RECORD = Record(
    returns=(900.0, 1100.0, 1000.0, 400.0),
    untrained_returns=(10.0, 30.0),
    critics={
        "updates": 5,
        "episodes": 4,
        "training": {"bias": 61.0, "bias_std": 13.0, "coverage": 0.01},
        "evaluation": {"bias": 2.5, "bias_std": 8.0, "coverage": 0.93},
    },
)
MANIFEST: dict[str, Any] = {
    "format_version": 2,
    "name": "hopper",
    "task": {"environment": "Hopper-v5", "perturbations": ["dynamics=0.05", "delay=1"]},
    "training": {"steps": 7000, "seed": 3, "algorithm": "Distributional Sobolev Training"},
    "evaluation": {"episodes": 4},
    "uncertainty": {"discount": 0.99, "sample_count": 32},
    "control_period_s": 0.008,
    "observation": [{"name": "torso_z", "unit": "m", "low": None, "high": None}],
    "observed_range": {"low": [0.7], "high": [1.5]},
    "action": [{"name": "knee", "unit": "N m", "low": -1.0, "high": 1.0}],
    "libraries": {"torch": "2.13.0", "numpy": "2.1"},
}


def card(calibration: Calibration | None, record: Record = RECORD) -> str:
    return policy_card(MANIFEST, calibration, record)


def before_the_first_section(text: str) -> str:
    return text.split("\n## ", maxsplit=1)[0]


def changed(calibration: Calibration, signal: str, auc: Estimate) -> Calibration:
    warnings = (
        dataclasses.replace(found, auc=auc) if found.signal == signal else found for found in calibration.warnings
    )
    return dataclasses.replace(calibration, warnings=tuple(warnings))


def at_ninety(calibration: Calibration, found: Estimate) -> Calibration:
    coverage = (*calibration.corrected.coverage[:2], found, calibration.corrected.coverage[3])
    return dataclasses.replace(calibration, corrected=dataclasses.replace(calibration.corrected, coverage=coverage))


def test_card_that_is_not_calibrated_says_so_at_the_top_and_promises_nothing() -> None:
    text = card(None)
    assert "**Not calibrated.**" in before_the_first_section(text)
    assert "promises nothing" in text
    for word in ("calibration.svg", "warning.svg", "corrected 90"):
        assert word not in text
    assert "| training critics | 61 | 13 | 1 % |" in text
    assert "| evaluation critic | 2.5 | 8 | 93 % |" in text


def test_uncompared_run_has_no_comparison() -> None:
    assert "evaluation critic |" not in card(None, dataclasses.replace(RECORD, critics={}))
    assert "evaluation critic |" not in card(None, dataclasses.replace(RECORD, critics={"updates": 5, "episodes": 4}))


def test_every_measured_number_stands_in_the_calibrated_card() -> None:
    calibration = made_up_calibration()
    text = card(calibration)
    assert "Not calibrated" not in text
    for scores in (calibration.raw, calibration.corrected, calibration.training_critics):
        for found in scores.coverage:
            assert f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})" in text
        for width in scores.width:
            assert f" {width:.3g} |" in text
        for found in (scores.bias, scores.crps):
            assert f"{found.value:.3g} ({found.low:.3g} to {found.high:.3g})" in text
    for found in calibration.warnings:
        assert f"`{found.signal}` | {found.auc.value:.2f} ({found.auc.low:.2f} to {found.auc.high:.2f})" in text
    for threshold in (calibration.critic_disagreement, calibration.data_distance):
        assert f"| {threshold.value:.4g} |" in text
        assert f"{100 * threshold.alarm_rate.value:.1f} % (" in text
    for word in ("300 fresh episodes", "70 of 300 test episodes fell", "within 1 s", "(125 decisions)", "at most 1 %"):
        assert word in text.replace("\n", " ")


def test_first_lines_name_return_coverage_and_warning() -> None:
    top = before_the_first_section(card(made_up_calibration()))
    assert "earns 850 (" in top
    assert "before training 20" in top
    assert "90 % interval held 90.5 % (88.5 to 91.5)" in top
    assert "Uncorrected it held 80.0 %" in top
    assert "'low CVaR of the return', area under the curve 0.90" in top


def test_interval_of_the_mean_return_lies_between_worst_and_best_episode() -> None:
    plain = card_json(MANIFEST, None, RECORD)["return"]
    assert 400 < plain["low"] < plain["value"] == 850 < plain["high"] < 1100


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.80, 0.88, "less than it promises"),
        (0.88, 0.92, "what it promises"),
        (0.92, 0.95, "more than it promises"),
    ],
)
def test_verdict_follows_the_interval_of_the_coverage(low: float, high: float, verdict: str) -> None:
    found = Estimate(value=(low + high) / 2, low=low, high=high)
    top = before_the_first_section(card(at_ninety(made_up_calibration(), found)))
    said = [words for words in ("less than it promises", "what it promises", "more than it promises") if words in top]
    assert said == [verdict]


def test_signals_no_better_than_chance_do_not_warn() -> None:
    calibration = made_up_calibration()
    for found in calibration.warnings:
        calibration = changed(calibration, found.signal, Estimate(value=0.52, low=0.45, high=0.6))
    assert "does not warn" in before_the_first_section(card(calibration))
    wide = changed(calibration, "critic_disagreement", Estimate(value=0.75, low=0.4, high=0.9))
    assert "does not warn" in before_the_first_section(card(wide))
    one = changed(wide, "data_distance", Estimate(value=0.7, low=0.6, high=0.8))
    assert "but weakly: best by 'far from the training data'" in before_the_first_section(card(one))


def test_thresholds_say_whether_ticks_before_a_fall_count() -> None:
    calibration = dataclasses.replace(made_up_calibration(), thresholds_with_falls=None)
    assert "not about to fall" in card(calibration)
    assert "not about to fall" not in card(dataclasses.replace(calibration, thresholds_with_falls="too few"))


def test_task_without_falls_says_why_there_is_no_curve() -> None:
    calibration = dataclasses.replace(
        made_up_calibration(), falls=0, warnings=(), no_warnings="0 of 300 test episodes have a tick before a fall"
    )
    text = card(calibration)
    assert "could not be measured: 0 of 300" in before_the_first_section(text)
    assert "No curve: 0 of 300" in text
    assert "warning.svg" not in text


def test_contract_task_and_versions_are_those_of_the_manifest() -> None:
    text = card(None)
    for word in (
        "**Hopper-v5**, disturbed by: dynamics=0.05, delay=1.",
        "7000 environment steps, seed 3",
        "| torso_z | m | 0.7 to 1.5 |",
        "| knee | N m | -1 to 1 |",
        "every 0.008 s",
        "Bundle format 2. torch 2.13.0, numpy 2.1.",
    ):
        assert word in text


@pytest.mark.parametrize("calibration", [None, made_up_calibration()], ids=["uncalibrated", "calibrated"])
def test_tables_are_whole_and_nothing_is_left_to_fill_in(calibration: Calibration | None) -> None:
    text = card(calibration)
    assert not re.search(r"nan|None|\{|\}", text)
    rows: list[int] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line.count("|"))
            continue
        assert len(set(rows)) <= 1
        rows.clear()


def test_card_for_programs_holds_calibration_and_record_in_full() -> None:
    calibration = made_up_calibration()
    plain = json.loads(json.dumps(card_json(MANIFEST, calibration, RECORD), allow_nan=False))
    assert plain["calibration"] == json.loads(json.dumps(dataclasses.asdict(calibration)))
    assert plain["returns"] == list(RECORD.returns)
    assert plain["critics"]["evaluation"]["bias"] == 2.5
    assert card_json(MANIFEST, None, RECORD)["calibration"] is None
