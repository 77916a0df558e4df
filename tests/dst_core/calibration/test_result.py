import dataclasses
import json
import math
from pathlib import Path

import pytest

from dst_core.calibration.result import CALIBRATION_FILE, FORMAT_VERSION, Calibration, CalibrationConfig
from dst_core.errors import CalibrationError
from tests.dst_core.calibration.results import made_up_calibration


@pytest.mark.parametrize("changes", [{}, {"energy": None, "warnings": (), "no_warnings": "no test episode fell"}])
def test_calibration_survives_its_json(changes: dict[str, object]) -> None:
    calibration = dataclasses.replace(made_up_calibration(), **changes)
    assert Calibration.from_json(calibration.to_json()) == calibration


def test_calibration_is_kept_in_the_directory_of_its_run(tmp_path: Path) -> None:
    assert Calibration.read(tmp_path) is None
    made_up_calibration().write(tmp_path)
    assert Calibration.read(tmp_path) == made_up_calibration()
    (tmp_path / CALIBRATION_FILE).write_bytes(b"\xff")
    with pytest.raises(CalibrationError, match="cannot be read"):
        Calibration.read(tmp_path)


def test_calibration_of_another_version_is_refused() -> None:
    plain = json.loads(made_up_calibration().to_json())
    plain["format_version"] = FORMAT_VERSION + 1
    with pytest.raises(
        CalibrationError, match=f"format version {FORMAT_VERSION + 1}.*reads {FORMAT_VERSION};.*dst-calibrate"
    ):
        Calibration.from_json(json.dumps(plain))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("positions", None),
        ("positions", ["a"]),
        ("falls", "many"),
        ("raw", {}),
        ("pit", 3),
        ("unknown", 1),
        ("discount", True),
        ("discount", math.nan),
        ("realised_std", math.inf),
        ("realised_mean", 10**400),
        ("positions", [-math.inf, *[0.0] * 8]),
        ("positions", [0.0] * 8),
        ("std_floor", 0.0),
        ("quantile_levels", [0.1, 0.5, 0.9]),
        ("levels", [0.5, 0.8, 0.9]),
    ],
)
def test_edited_calibration_is_refused(name: str, value: object) -> None:
    plain = json.loads(made_up_calibration().to_json())
    plain[name] = value
    with pytest.raises(CalibrationError, match="damaged or was edited"):
        Calibration.from_json(json.dumps(plain))


@pytest.mark.parametrize("scores", ["raw", "corrected", "training_critics"])
@pytest.mark.parametrize("column", ["coverage", "width"])
def test_scores_of_other_intervals_than_the_levels_are_refused(scores: str, column: str) -> None:
    calibration = made_up_calibration()
    found = getattr(calibration, scores)
    fewer = dataclasses.replace(found, **{column: getattr(found, column)[1:]})
    with pytest.raises(CalibrationError, match=rf"{scores}\.{column} must be as many as levels, 4, got 3"):
        dataclasses.replace(calibration, **{scores: fewer})


@pytest.mark.parametrize("name", ["critic_disagreement", "data_distance"])
def test_negative_threshold_is_refused(name: str) -> None:
    calibration = made_up_calibration()
    negative = dataclasses.replace(getattr(calibration, name), value=-0.1)
    with pytest.raises(CalibrationError, match=rf"threshold of {name} must not be negative, got -0\.1"):
        dataclasses.replace(calibration, **{name: negative})


@pytest.mark.parametrize("text", ["", "[1]", "{}", f'{{"format_version": {FORMAT_VERSION}}}', "null"])
def test_text_that_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(CalibrationError, match="damaged or was edited"):
        Calibration.from_json(text)


def test_manifest_holds_exactly_what_the_bundle_format_lists() -> None:
    calibration = made_up_calibration()
    manifest = calibration.manifest()
    assert set(manifest) == {
        *("episodes", "test_episodes", "first_seed", "first_test_seed", "positions", "levels", "raw", "corrected"),
        *("false_alarm_rate", "critic_disagreement_threshold", "data_distance_threshold"),
    }
    for name in ("raw", "corrected"):
        assert set(manifest[name]) == {"coverage", "width", "coverage_low", "coverage_high", "crps", "bias"}
    assert json.loads(json.dumps(manifest, allow_nan=False)) == manifest
    assert manifest["corrected"]["coverage"] == [pytest.approx(level + 0.005) for level in (0.5, 0.8, 0.9, 0.95)]
    assert manifest["raw"]["coverage_low"] == [estimate.low for estimate in calibration.raw.coverage]
    assert manifest["critic_disagreement_threshold"] == calibration.critic_disagreement.value


@pytest.mark.parametrize(
    "choice",
    [
        {"episodes": 1},
        {"test_episodes": 0},
        {"false_alarm_rate": 0.0},
        {"false_alarm_rate": 1.0},
        {"failure_horizon_s": 0.0},
        {"levels": ()},
        {"levels": (0.9, 0.5)},
        {"levels": (0.5, 0.9, 0.9)},
        {"levels": (0.0, 0.9)},
        {"levels": (0.9, 1.0)},
        {"levels": (math.nan,)},
    ],
)
def test_choice_outside_its_range_is_refused_with_its_flag(choice: dict[str, object]) -> None:
    with pytest.raises(CalibrationError, match="^--" + next(iter(choice)).replace("_", "-")):
        CalibrationConfig(**choice)
