import json

import numpy as np
import onnx
import pytest
import torch

from server.bundle import load_bundle
from server.errors import BundleError, InferenceError, InvalidInputError, ProviderError
from server.runtime import CPU, Detail, Runtime, _shapes
from tests.server import small_bundle


@pytest.fixture(scope="module")
def runtime(loaded):
    return Runtime(loaded, "cpu")


def reseal(path, change=lambda manifest: None):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    small_bundle.seal(path, manifest)
    return load_bundle(path)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_served_outputs_are_those_of_the_torch_modules(runtime, torch_policy, batch):
    observations = torch.randn(batch, small_bundle.S, generator=torch.Generator().manual_seed(batch))
    with torch.no_grad():
        expected = dict(zip(("action", *small_bundle.SUMMARY), torch_policy(observations), strict=True))
    served = runtime.infer(observations.numpy(), Detail.SAMPLES)
    for name, output in zip(runtime.outputs[Detail.SAMPLES], served, strict=True):
        np.testing.assert_allclose(output, expected[name].numpy(), rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("rows", "count"), [(1, 1), (1, 7), (3, 5)])
def test_law_of_each_candidate_is_the_one_computed_alone(runtime, torch_policy, rows, count):
    random = np.random.default_rng(rows + count)
    observations = random.normal(size=(rows, small_bundle.S)).astype(np.float32)
    candidates = random.uniform(-0.4, 0.4, size=(rows, count, small_bundle.A)).astype(np.float32)
    assessed = runtime.assess(observations, candidates)
    assert tuple(assessed) == small_bundle.SUMMARY
    for row, column in np.ndindex(rows, count):
        alone = torch.from_numpy(candidates[row, column])[None, None]
        with torch.no_grad():
            expected = torch_policy.critic(torch.from_numpy(observations[row])[None], alone)
        for name, value in zip(small_bundle.SUMMARY, expected, strict=True):
            np.testing.assert_allclose(assessed[name][row, column], value[0, 0], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("bad", "shown"), [(0.4001, "0.4001"), (-7.0, "-7.0"), (np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")]
)
def test_candidate_outside_its_limits_is_refused_by_row_and_channel(runtime, bad, shown):
    candidates = np.zeros((2, 3, small_bundle.A), np.float32)
    candidates[1, 2, 1] = bad
    with pytest.raises(
        InvalidInputError, match=rf"candidate 2 of row 1 has {shown} for 'elbow' at index 1, outside \[-0.4"
    ):
        runtime.assess(np.zeros((2, small_bundle.S), np.float32), candidates)


def test_candidate_at_its_limits_is_assessed(runtime):
    limits = np.float32([[small_bundle.LOW, small_bundle.HIGH]])
    assert runtime.assess(np.zeros((1, small_bundle.S), np.float32), limits)["return_mean"].shape == (1, 2)


@pytest.mark.parametrize("shape", [(2, 2), (1, 3, 2), (2, 3, 3), (2, 0, 2)])
def test_candidates_of_another_shape_are_refused(runtime, shape):
    with pytest.raises(InvalidInputError, match=r"shape \(2, candidates, 2\) with at least one candidate, got"):
        runtime.assess(np.zeros((2, small_bundle.S), np.float32), np.zeros(shape, np.float32))


def test_uncalibrated_policy_serves_the_same_raw_law_and_no_corrected_one(runtime, uncalibrated):
    plain = Runtime(load_bundle(uncalibrated), "cpu")
    observations = np.zeros((2, small_bundle.S), np.float32)
    both = dict(zip(runtime.outputs[Detail.SAMPLES], runtime.infer(observations, Detail.SAMPLES), strict=True))
    served = dict(zip(plain.outputs[Detail.SAMPLES], plain.infer(observations, Detail.SAMPLES), strict=True))
    assert set(both) - set(served) == set(small_bundle.OPTIONAL)
    for name, value in served.items():
        np.testing.assert_array_equal(value, both[name], err_msg=name)


def test_detail_says_what_is_computed(runtime):
    observations = np.zeros((2, small_bundle.S), np.float32)
    by_detail = {detail: runtime.infer(observations, detail) for detail in Detail}
    everything = ("action", *small_bundle.SUMMARY)
    assert runtime.outputs == {
        Detail.NONE: ("action",),
        Detail.SUMMARY: tuple(name for name in everything if not name.endswith("_samples")),
        Detail.SAMPLES: everything,
    }
    for detail, outputs in by_detail.items():
        assert len(outputs) == len(runtime.outputs[detail])
    for outputs in by_detail.values():
        np.testing.assert_allclose(outputs[0], by_detail[Detail.NONE][0], rtol=1e-6)


def test_provider_is_read_back_from_the_session(runtime):
    assert runtime.provider == CPU


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_demanded_provider_that_is_missing_refuses_to_start(loaded, provider, capfd):
    if Runtime(loaded, "auto").provider != CPU:
        pytest.skip("this machine runs CUDA")
    with pytest.raises(ProviderError, match=rf"--provider {provider} was demanded but .*; install the 'gpu' extra"):
        Runtime(loaded, provider)
    assert capfd.readouterr() == ("", "")


def test_tensorrt_is_built_for_all_batches_at_once():
    inputs = {"observation": (17,), "action": (None, 6)}
    assert _shapes(inputs, 1) == "observation:1x17,action:1x1x6"
    assert _shapes(inputs, 256) == "observation:256x17,action:256x256x6"


@pytest.mark.parametrize(
    ("graph", "output"), [("policy.onnx", "return_cvar"), ("actor.onnx", "action"), ("uncertainty.onnx", "return_std")]
)
def test_graph_that_differs_from_its_golden_data_is_refused(edited, graph, output):
    model = onnx.load(edited / graph)
    nudge_output(model, output, 1e-2)
    onnx.save(model, edited / graph)
    with pytest.raises(BundleError, match=rf"{graph}: {output} differs from golden.npz at .*, tolerance"):
        Runtime(reseal(edited), "cpu")


def test_difference_within_the_tolerance_is_served(edited):
    model = onnx.load(edited / "policy.onnx")
    nudge_output(model, "return_cvar", 1e-2)
    onnx.save(model, edited / "policy.onnx")
    Runtime(reseal(edited, lambda manifest: manifest["tolerance"].update(absolute=2e-2)), "cpu")


def nudge_output(model, output, offset):
    """Adds a constant to one output of a graph, and to nothing that is computed from it."""
    for node in model.graph.node:
        node.output[:] = [f"{output}_before" if name == output else name for name in node.output]
        node.input[:] = [f"{output}_before" if name == output else name for name in node.input]
    constant = onnx.numpy_helper.from_array(np.float32(offset), f"{output}_offset")
    model.graph.initializer.append(constant)
    model.graph.node.append(onnx.helper.make_node("Add", [f"{output}_before", constant.name], [output]))


def test_graph_with_a_baked_in_batch_size_is_refused(edited):
    model = onnx.load(edited / "policy.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, edited / "policy.onnx")
    with pytest.raises(BundleError, match=r"input 'observation' must be float32 of shape \(batch, 3\), named axes dyn"):
        Runtime(reseal(edited), "cpu")


def test_graph_with_a_baked_in_number_of_candidates_is_refused(edited):
    model = onnx.load(edited / "uncertainty.onnx")
    model.graph.input[1].type.tensor_type.shape.dim[1].dim_value = 3
    onnx.save(model, edited / "uncertainty.onnx")
    with pytest.raises(BundleError, match=r"uncertainty.onnx: input 'action' must be .* \(batch, candidates, 2\)"):
        Runtime(reseal(edited), "cpu")


def test_graph_of_another_size_than_the_manifest_is_refused(edited):
    bundle = reseal(edited)
    manifest = bundle.manifest.model_copy(update={"observation": bundle.manifest.observation[:2]})
    with pytest.raises(BundleError, match=r"observation.* shape \(batch, 2\), .* got tensor\(float\)"):
        Runtime(type(bundle)(path=bundle.path, manifest=manifest, files=bundle.files, golden=bundle.golden), "cpu")


def test_graph_without_a_summary_output_is_refused(edited):
    (edited / "policy.onnx").write_bytes((edited / "actor.onnx").read_bytes())
    with pytest.raises(BundleError, match=r"policy.onnx: outputs must be action, return_mean.*, got action;"):
        Runtime(reseal(edited), "cpu")


def test_file_that_is_no_graph_is_refused(edited):
    (edited / "actor.onnx").write_bytes(b"\x08\x0a" * 50)
    with pytest.raises(BundleError, match=r"actor.onnx: ONNX Runtime .* cannot load it"):
        Runtime(reseal(edited), "cpu")


def test_output_that_is_not_finite_is_never_served(edited):
    model = onnx.load(edited / "policy.onnx")
    # log1p of the first observation on top: NaN below -1, nothing for the golden observations at zero.
    for node in model.graph.node:
        node.output[:] = ["mean_before" if name == "return_mean" else name for name in node.output]
        node.input[:] = ["mean_before" if name == "return_mean" else name for name in node.input]
    constants = {
        "zero": np.float32(0),
        "one": np.float32(1),
        "first": np.int64(0),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend(
        [
            onnx.helper.make_node("Gather", ["observation", "first"], ["position"], axis=1),
            onnx.helper.make_node("Add", ["position", "one"], ["shifted"]),
            onnx.helper.make_node("Log", ["shifted"], ["logarithm"]),
            onnx.helper.make_node("Mul", ["logarithm", "zero"], ["nothing"]),
            onnx.helper.make_node("Add", ["mean_before", "nothing"], ["return_mean"]),
        ]
    )
    onnx.save(model, edited / "policy.onnx")
    arrays = dict(np.load(edited / "golden.npz"))
    keep = arrays["observation"][:, 0] > -0.9
    assert keep.any()
    np.savez(edited / "golden.npz", **{name: array[keep] for name, array in arrays.items()})
    runtime = Runtime(reseal(edited), "cpu")
    assert len(runtime.infer(np.float32([[0.0, 0.0, 0.0]]), Detail.SUMMARY)) == len(runtime.outputs[Detail.SUMMARY])
    with pytest.raises(InferenceError, match="gave a return_mean that is not finite"):
        runtime.infer(np.float32([[-2.0, 0.0, 0.0]]), Detail.SUMMARY)


def test_action_outside_its_limits_is_never_served(edited):
    # The graph's actuator range is wider than what the contract allows.
    def narrow(manifest):
        manifest["action"][1]["high"] = float(np.nextafter(arrays["action"][:, 1].max(), np.float32(1)))

    arrays = dict(np.load(edited / "golden.npz"))
    runtime = Runtime(reseal(edited, narrow), "cpu")
    extreme = np.float32(100) * np.sign(small_bundle.modules().actor.layer.weight[1].detach().numpy())
    with pytest.raises(InferenceError, match=r"action 0.4.* for 'elbow' at index 1, outside \[-0.4"):
        runtime.infer(extreme[None], Detail.NONE)


def test_rounding_at_a_limit_is_clipped_to_it(edited):
    def narrow(manifest):
        manifest["action"][1]["high"] = 0.4 * (1 - 3e-6)

    runtime = Runtime(reseal(edited, narrow), "cpu")
    extreme = np.float32(100) * np.sign(small_bundle.modules().actor.layer.weight[1].detach().numpy())
    action = runtime.infer(extreme[None], Detail.NONE)[0]
    assert action[0, 1] == np.float32(0.4 * (1 - 3e-6))
