import io
import json
import os
import shutil
import zipfile

import numpy as np
import pytest

from server import bundle as bundle_module
from server.bundle import load_bundle
from server.errors import BundleError
from tests.server import small_bundle


def change_manifest(path, change):
    """Edits the manifest and seals it again, as an exporter with a fault would have written it."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    small_bundle.seal(path, manifest)


def test_bundle_loads_as_it_was_written(bundle):
    loaded = load_bundle(bundle)
    assert loaded.manifest.observation_names == small_bundle.OBSERVATION
    assert loaded.manifest.observation[0].low == -2.5
    assert loaded.manifest.observation[0].high is None
    assert loaded.files["policy.onnx"] == (bundle / "policy.onnx").read_bytes()
    assert loaded.golden["gradient_samples"].shape == (4, small_bundle.N, small_bundle.A)
    assert loaded.manifest.calibration.positions == list(small_bundle.POSITIONS)
    assert loaded.manifest.calibration.corrected.coverage == [0.49, 0.81]


def test_uncalibrated_bundle_loads_without_corrected_quantiles(uncalibrated):
    loaded = load_bundle(uncalibrated)
    assert loaded.manifest.calibration is None
    assert set(small_bundle.SUMMARY) - set(loaded.golden) == set(small_bundle.OPTIONAL)


def test_figure_of_falls_may_be_there(edited):
    (edited / "warning.svg").write_text("<svg/>")
    change_manifest(edited, lambda manifest: None)
    assert load_bundle(edited).files["warning.svg"] == b"<svg/>"


@pytest.mark.parametrize("change", ["figure of an uncalibrated policy", "no card"])
def test_file_set_that_does_not_fit_is_refused_by_name(uncalibrated, tmp_path, change):
    spoilt = shutil.copytree(uncalibrated, tmp_path / "spoilt")
    if change == "no card":
        (spoilt / "card.json").unlink()
    else:
        (spoilt / "calibration.svg").write_text("<svg/>")
    change_manifest(spoilt, lambda manifest: None)
    with pytest.raises(BundleError, match=r"files must list .* differs in (calibration.svg|card.json); export"):
        load_bundle(spoilt)


@pytest.mark.parametrize(
    "name",
    ["actor.onnx", "uncertainty.onnx", "policy.onnx", "golden.npz", "README.md", "card.json", "calibration.svg"],
)
@pytest.mark.parametrize("damage", ["truncated", "edited", "removed"])
def test_damaged_file_is_refused_by_name(edited, name, damage):
    content = (edited / name).read_bytes()
    if damage == "removed":
        (edited / name).unlink()
    else:
        flipped = content[:-1] + bytes([content[-1] ^ 1])
        (edited / name).write_bytes(content[:-1] if damage == "truncated" else flipped)
    with pytest.raises(BundleError, match=rf"{name}: (SHA-256|missing)"):
        load_bundle(edited)


def test_edited_manifest_is_refused(edited):
    text = (edited / "manifest.json").read_text()
    assert "0.99" in text
    (edited / "manifest.json").write_text(text.replace("0.99", "0.98"))
    with pytest.raises(BundleError, match=r"manifest.json: version must be .* the manifest was edited"):
        load_bundle(edited)


@pytest.mark.parametrize("text", ["", "{", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, "[]", "\udcff"])
def test_manifest_that_is_not_plain_json_is_refused(edited, text):
    (edited / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(BundleError, match=r"manifest.json: (not valid JSON|must be a JSON object)"):
        load_bundle(edited)


def test_newer_format_is_refused_by_name(edited):
    # A newer format may differ in anything, so its number is what must be reported.
    change_manifest(edited, lambda manifest: manifest.update(format_version=3, future="x", control_period_s=None))
    with pytest.raises(BundleError, match="format_version 3 is newer than 2"):
        load_bundle(edited)


def test_former_format_is_refused_by_name_with_the_cure(edited):
    change_manifest(edited, lambda manifest: manifest.update(format_version=1, calibration={}))
    with pytest.raises(BundleError, match=r"format_version 1 is older than 2, .*; export the run again with the dst-"):
        load_bundle(edited)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("tolerance"), "tolerance: Field required"),
        (lambda m: m.update(surprise=1), "surprise: Extra inputs"),
        (lambda m: m.update(name="Reacher Arm"), "name: String should match"),
        (lambda m: m.update(format_version="2"), "format_version: Input should be 2"),
        (lambda m: m.update(control_period_s=0), "control_period_s: Input should be greater than 0"),
        (lambda m: m.update(control_period_s="0.01"), "control_period_s: Input should be a valid number"),
        (lambda m: m["observation"][1].update(name="position"), "names must be unique, repeated: position"),
        (lambda m: m["action"][0].update(low=2.0), "'shoulder': low 2.0 must lie below high 1.0"),
        (lambda m: m["observed_range"]["low"].pop(), "observed_range.low must have one number per observation"),
        (lambda m: m["uncertainty"].update(return_quantile_levels=[0.5, 0.1]), "levels must increase strictly"),
        (lambda m: m["uncertainty"].update(sample_count=True), "sample_count: Input should be a valid integer"),
        (lambda m: m.update(observation=[]), "observation: List should have at least 1 item"),
        (lambda m: m["uncertainty"].pop("return_threshold"), "uncertainty.return_threshold: Field required"),
        (lambda m: m["uncertainty"].update(observation_gradient=1), "observation_gradient: Input should be a valid bo"),
        (
            lambda m: m["calibration"]["positions"].pop(),
            "positions must have one number per return quantile level .3., got 2",
        ),
        (lambda m: m["calibration"]["raw"]["width"].pop(), r"raw.width must have one number per level \(2\), got 1"),
        (lambda m: m["calibration"]["corrected"]["coverage"].append(0.9), "corrected.coverage must have one number"),
        (lambda m: m["calibration"]["raw"].update(coverage=[0.5, 1.1]), "raw.coverage.1: Input should be less than or"),
        (lambda m: m["calibration"]["raw"].update(coverage_low=[0.5, 0.5]), "coverage_low 0.5 must not lie above"),
        (lambda m: m["calibration"].update(levels=[0.8, 0.5]), "levels must increase strictly"),
        (lambda m: m["calibration"].update(first_test_seed=1039), "from seed 1039 must be others than those from seed"),
        (
            lambda m: m["calibration"].update(data_distance_threshold=-1.0),
            "data_distance_threshold: Input should be gr",
        ),
        (
            lambda m: m["calibration"].update(critic_disagreement_threshold=None),
            "threshold: Input should be a valid num",
        ),
        (lambda m: m["calibration"].update(false_alarm_rate=0), "false_alarm_rate: Input should be greater than 0"),
        (lambda m: m["calibration"].update(surprise=1), "calibration.surprise: Extra inputs"),
    ],
)
def test_manifest_with_a_faulty_field_is_refused_by_field(edited, change, message):
    change_manifest(edited, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(edited)


def test_symbolic_link_is_not_followed(edited, tmp_path):
    outside = tmp_path / "outside.md"
    (edited / "README.md").rename(outside)
    (edited / "README.md").symlink_to(outside)
    with pytest.raises(BundleError, match=r"README.md: cannot be opened"):
        load_bundle(edited)


def test_pipe_in_place_of_a_file_is_refused_without_waiting(edited):
    (edited / "README.md").unlink()
    os.mkfifo(edited / "README.md")
    with pytest.raises(BundleError, match=r"README.md: not a regular file"):
        load_bundle(edited)


def test_file_outside_the_bundle_cannot_be_listed(edited):
    manifest = json.loads((edited / "manifest.json").read_text())
    manifest["files"]["../secret"] = manifest["files"].pop("README.md")
    (edited / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"files\.\.\./secret"):
        load_bundle(edited)


def test_unlisted_file_is_refused(edited):
    (edited / "plugin.py").write_text("")
    with pytest.raises(BundleError, match=r"plugin.py: not listed in the manifest"):
        load_bundle(edited)


def test_file_over_its_cap_is_refused(edited, monkeypatch):
    monkeypatch.setitem(bundle_module.FILE_CAPS, "README.md", 8)
    with pytest.raises(BundleError, match=r"README.md: larger than 8 bytes"):
        load_bundle(edited)


def golden_arrays(path):
    with np.load(path / "golden.npz") as archive:
        return dict(archive)


def rewrite_golden(path, arrays):
    np.savez(path / "golden.npz", **arrays)
    change_manifest(path, lambda manifest: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("return_cvar"), "it differs in return_cvar"),
        (lambda a: a.pop("return_quantiles_corrected"), "it differs in return_quantiles_corrected"),
        (lambda a: a.update(action=a["action"][:, :1]), r"action must be float32 \(4, 2\), got float32 \(4, 1\)"),
        (lambda a: a.update(action=a["action"].astype(np.float64)), "action must be float32"),
        (lambda a: a.update(return_mean=np.full(4, np.nan, np.float32)), "return_mean must be finite"),
        (lambda a: a.update({k: v[:0] for k, v in a.items()}), "at least one observation"),
    ],
)
def test_golden_data_that_do_not_fit_are_refused(edited, change, message):
    arrays = golden_arrays(edited)
    change(arrays)
    rewrite_golden(edited, arrays)
    with pytest.raises(BundleError, match=f"golden.npz: .*{message}"):
        load_bundle(edited)


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (os.mkdir, (str(self.mark),))


def test_pickled_golden_data_are_refused_without_unpickling(edited, tmp_path):
    arrays = golden_arrays(edited)
    arrays["action"] = np.array([Payload(tmp_path / "unpickled")], dtype=object)
    rewrite_golden(edited, arrays)
    with pytest.raises(BundleError, match=r"golden.npz: not a readable npz file \(Object arrays cannot be loaded"):
        load_bundle(edited)
    assert not (tmp_path / "unpickled").exists()


def test_golden_data_that_unpack_beyond_the_cap_are_refused(edited):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("action.npy", bytes(65 << 20))
    (edited / "golden.npz").write_bytes(packed.getvalue())
    change_manifest(edited, lambda manifest: None)
    with pytest.raises(BundleError, match=r"golden.npz: unpacks to 68157440 bytes"):
        load_bundle(edited)


def test_path_that_is_no_bundle_is_refused(tmp_path):
    with pytest.raises(BundleError, match="is not a directory; give the directory that dst-export wrote"):
        load_bundle(tmp_path / "missing")
    with pytest.raises(BundleError, match=r"manifest.json: missing"):
        load_bundle(tmp_path)
