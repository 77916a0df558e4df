import json
import math
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from server.bundle_difference import wasserstein_1
from server.graph_size import graph_size
from server.inspection import GRAPHS, main
from tests.server import small_bundle
from tests.server.test_runtime import nudge_output

SHIFT = 0.25


def shown(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def printed(capsys, monkeypatch, *arguments):
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*map(str, arguments)]) == 0
    return capsys.readouterr().out


def edit(path, to, change):
    """A copy of a bundle with another manifest, sealed again."""
    copy = shutil.copytree(path, to)
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    small_bundle.seal(copy, manifest)
    return copy


@pytest.fixture(scope="module")
def shifted(bundle, tmp_path_factory):
    """The bundle whose return samples and their mean all lie higher, and whose elbow moves a little more."""
    copy = shutil.copytree(bundle, tmp_path_factory.mktemp("shifted") / "reacher")
    arrays = dict(np.load(copy / "golden.npz"))
    moved = {"return_samples": SHIFT, "return_mean": SHIFT, "action": np.float32([0.0, 1e-3])}
    for graph in GRAPHS:
        model = onnx.load(copy / graph)
        given = {output.name for output in model.graph.output}
        for output in given & set(moved):
            nudge_output(model, output, moved[output])
        onnx.save(model, copy / graph)
    rerun = {name: array + moved.get(name, 0) for name, array in arrays.items()}
    np.savez(copy / "golden.npz", **{name: array.astype(np.float32) for name, array in rerun.items()})
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["tolerance"] = {"relative": 0.0, "absolute": 0.1}
    manifest["training"]["configuration"] = {"agent": {"hidden": 8}}
    manifest["calibration"]["positions"][2] = 0.7
    small_bundle.seal(copy, manifest)
    return copy


def test_sizes_are_those_that_onnx_counts(bundle, capsys):
    described = shown(capsys, bundle)["bundle"]
    for name in GRAPHS:
        graph = onnx.load(bundle / name).graph
        tensors = [*graph.initializer, *(a.t for node in graph.node for a in node.attribute if a.HasField("t"))]
        assert described["graphs"][name] == {
            "bytes": (bundle / name).stat().st_size,
            "nodes": len(graph.node),
            "numbers": sum(math.prod(tensor.dims) for tensor in tensors if tensor.dims),
        }
    # The weights and biases of the actor's one layer, its lower limits, and half of its ranges.
    assert described["graphs"]["actor.onnx"]["numbers"] == small_bundle.A * (small_bundle.S + 1 + 2)


def test_numbers_stored_in_nodes_count_too():
    inside = onnx.helper.make_node(
        "Constant", [], ["inside"], value=onnx.numpy_helper.from_array(np.zeros((2, 3), np.float32))
    )
    add = onnx.helper.make_node("Add", ["inside", "beside"], ["sum"])
    beside = onnx.numpy_helper.from_array(np.zeros((1, 3), np.float32), "beside")
    result = onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, (2, 3))
    model = onnx.helper.make_model(onnx.helper.make_graph([inside, add], "sums", [], [result], [beside]))
    size = graph_size(model.SerializeToString())
    assert (size.nodes, size.numbers) == (2, 9)


def test_bundle_is_shown_as_its_manifest_says(bundle, loaded, capsys):
    described = shown(capsys, bundle)["bundle"]
    assert described["version"] == loaded.manifest.version
    assert described["verified"] == {"files": 7, "golden_observations": 4}
    assert {name: file["sha256"] for name, file in described["files"].items()} == loaded.manifest.files
    assert described["calibration"] == small_bundle.CALIBRATION
    assert [channel["name"] for channel in described["observation"]] == list(small_bundle.OBSERVATION)


def test_people_see_contract_calibration_and_thresholds(bundle, capsys, monkeypatch):
    text = printed(capsys, monkeypatch, bundle)
    for part in (
        *small_bundle.OBSERVATION,
        *small_bundle.ACTION,
        *GRAPHS,
        "81.0 % (70.0 to 90.0)",
        "warns above 4",
        "on average at most 1 % of ordinary ticks",
    ):
        assert part in text
    assert "not calibrated" not in text


def test_uncalibrated_bundle_is_marked(uncalibrated, bundle, capsys, monkeypatch):
    assert "not calibrated: the stated ranges are the critics' own belief" in printed(capsys, monkeypatch, uncalibrated)
    assert shown(capsys, uncalibrated)["bundle"]["calibration"] is None
    difference = shown(capsys, uncalibrated, "--diff", bundle)["difference"]
    assert difference["changes"]["calibration"] == [
        {"what": "calibration", "first": "not calibrated", "second": "calibrated"}
    ]
    assert "return_quantiles_corrected is given by the second bundle alone" in difference["notes"]


def test_bundle_does_not_differ_from_itself(bundle, capsys):
    difference = shown(capsys, bundle, "--diff", bundle)["difference"]
    assert not any(difference["changes"].values())
    assert difference["observations"] == 8
    assert len(difference["gaps"]) == small_bundle.A + len(small_bundle.SUMMARY) - 2 + 1
    for gap in difference["gaps"]:
        assert gap["served"] == {"mean": 0, "largest": 0}, gap
        assert gap["same_action"] == (None if gap["output"].startswith("action") else {"mean": 0, "largest": 0})


def test_differences_in_actions_and_laws_are_as_large_as_they_were_made(bundle, shifted, capsys):
    difference = shown(capsys, bundle, "--diff", shifted)["difference"]
    gaps = {gap["output"]: gap for gap in difference["gaps"]}
    made = {"action elbow [N m]": 1e-3, "return_mean": SHIFT, "return law (Wasserstein-1)": SHIFT}
    for name, gap in gaps.items():
        for kind in ("served", "same_action"):
            if gap[kind] is not None:
                expected = pytest.approx(made.get(name, 0), abs=1e-6)
                assert gap[kind] == {"mean": expected, "largest": expected}, name
    changes = difference["changes"]
    assert changes["calibration"] == [{"what": "calibration.positions[2]", "first": 1.5, "second": 0.7}]
    assert changes["configuration"] == [
        {"what": "training.configuration.agent", "first": "absent", "second": {"hidden": 8}}
    ]
    assert changes["contract"] == changes["evaluation"] == changes["training data"] == []


def test_new_actor_under_the_old_critic_changes_the_served_law_and_no_law_at_the_same_actions(bundle, tmp_path, capsys):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    for graph, bias in (("actor.onnx", "layer.bias"), ("policy.onnx", "actor.layer.bias")):
        model = onnx.load(copy / graph)
        [weight] = [tensor for tensor in model.graph.initializer if tensor.name == bias]
        weight.CopyFrom(onnx.numpy_helper.from_array(np.float32([0.8, -0.8]), bias))
        onnx.save(model, copy / graph)
    old, new = (onnxruntime.InferenceSession(path / "policy.onnx") for path in (bundle, copy))
    inputs = {"observation": np.load(copy / "golden.npz")["observation"]}
    names = [output.name for output in new.get_outputs()]
    before, after = (dict(zip(names, session.run(names, inputs), strict=True)) for session in (old, new))
    np.savez(copy / "golden.npz", **inputs, **after)
    difference = shown(capsys, bundle, "--diff", edit(copy, tmp_path / "new", lambda m: None))["difference"]
    gaps = {gap["output"]: gap for gap in difference["gaps"]}
    for index, channel in enumerate(small_bundle.ACTION):
        moved = np.abs(before["action"][:, index] - after["action"][:, index])
        assert gaps[f"action {channel} [N m]"]["served"] == pytest.approx(
            {"mean": moved.mean(), "largest": moved.max()}
        )
    for name in ("return_mean", "return_quantiles_corrected", "gradient_mean"):
        moved = np.abs(before[name] - after[name])
        assert gaps[name]["served"] == pytest.approx({"mean": moved.mean(), "largest": moved.max()})
        assert gaps[name]["served"]["mean"] > 1e-2
    laws = [wasserstein_distance(*pair) for pair in zip(before["return_samples"], after["return_samples"], strict=True)]
    served = gaps["return law (Wasserstein-1)"]["served"]
    assert served == pytest.approx({"mean": np.mean(laws), "largest": max(laws)}, rel=1e-4)
    assert all(gap["same_action"]["largest"] < 1e-5 for gap in gaps.values() if gap["same_action"])
    assert [name for name, gap in gaps.items() if not gap["same_action"]] == list(gaps)[:2]


def test_differences_are_shown_to_people(bundle, shifted, capsys, monkeypatch):
    text = printed(capsys, monkeypatch, bundle, "--diff", shifted)
    assert re.search(r"calibration.positions\[2\] +│ 1.5 +│ 0.7", text)
    assert re.search(r"return law \(Wasserstein-1\) +│ \S+ +│ 0.25 +│ 0.25 +│ 0.25 +│ 0.25", text)
    assert "contract: no difference" in text


def test_answers_to_other_channels_are_not_compared(bundle, tmp_path, capsys):
    other = edit(bundle, tmp_path / "other", lambda m: m["observation"][1].update(unit="rad/s"))
    difference = shown(capsys, bundle, "--diff", other)["difference"]
    assert difference["changes"]["contract"] == [{"what": "observation[1].unit", "first": "m/s", "second": "rad/s"}]
    assert difference["gaps"] == []
    assert difference["notes"] == ["answers are not compared: the observation channels differ in name, unit or order"]


def test_outputs_at_other_levels_are_not_compared(bundle, tmp_path, capsys):
    other = edit(bundle, tmp_path / "other", lambda m: m["uncertainty"].update(return_threshold=0.0))
    difference = shown(capsys, bundle, "--diff", other)["difference"]
    assert "return_below_threshold is not compared: uncertainty.return_threshold differs" in difference["notes"]
    assert "return_below_threshold" not in {gap["output"] for gap in difference["gaps"]}


def test_law_at_actions_outside_the_other_bundle_s_limits_is_not_computed(bundle, tmp_path, capsys):
    copy = shutil.copytree(bundle, tmp_path / "nudged")
    model = onnx.load(copy / "policy.onnx")
    nudge_output(model, "action", np.float32([0.0, 1.0]))
    onnx.save(model, copy / "policy.onnx")

    def widen(manifest):
        manifest["action"][1]["high"] = 5.0
        manifest["tolerance"]["absolute"] = 1.1

    bold = edit(copy, tmp_path / "bold", widen)
    difference = shown(capsys, bold, "--diff", bundle)["difference"]
    assert all(gap["same_action"] is None for gap in difference["gaps"])
    assert re.search(r"refuses actions of the first: candidate 0 of row 0 has .* for 'elbow'", difference["notes"][-1])


@given(
    st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=9), min_size=2, max_size=2),
    st.integers(-20, 20),
)
def test_wasserstein_distance_is_scipy_s_and_that_of_a_shift_is_the_shift(samples, shift):
    first, second = (np.float32([values]) for values in samples)
    assert wasserstein_1(first, second)[0] == pytest.approx(wasserstein_distance(first[0], second[0]), abs=1e-4)
    assert wasserstein_1(first, first + shift)[0] == pytest.approx(abs(shift), abs=1e-4)


@pytest.mark.parametrize("which", ["bundle", "--diff"])
def test_damaged_bundle_is_refused_with_the_cure(bundle, edited, capsys, which):
    (edited / "card.json").write_text("{ }")
    arguments = [edited] if which == "bundle" else [bundle, "--diff", edited]
    assert main([*map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert re.fullmatch(
        r"dst-inspect: bundle refused: .*card.json: SHA-256 is .*; copy the bundle again.*\n", captured.err
    )
