import dataclasses
import json
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
        ("offsets", None),
        ("offsets", ["a"]),
        ("falls", "many"),
        ("raw", {}),
        ("pit", 3),
        ("unknown", 1),
        ("discount", True),
    ],
)
def test_edited_calibration_is_refused(name: str, value: object) -> None:
    plain = json.loads(made_up_calibration().to_json())
    plain[name] = value
    with pytest.raises(CalibrationError, match="damaged or was edited"):
        Calibration.from_json(json.dumps(plain))


@pytest.mark.parametrize("text", ["", "[1]", "{}", '{"format_version": 1}', "null"])
def test_text_that_is_no_calibration_is_refused(text: str) -> None:
    with pytest.raises(CalibrationError, match="damaged or was edited"):
        Calibration.from_json(text)


def test_manifest_holds_exactly_what_the_bundle_format_lists() -> None:
    calibration = made_up_calibration()
    manifest = calibration.manifest()
    assert set(manifest) == {
        *("episodes", "test_episodes", "first_seed", "first_test_seed", "offsets", "levels", "raw", "corrected"),
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
    ],
)
def test_choice_outside_its_range_is_refused_by_name(choice: dict[str, object]) -> None:
    with pytest.raises(CalibrationError, match=next(iter(choice))):
        CalibrationConfig(**choice)
