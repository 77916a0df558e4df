"""dst-export: the graphs say what torch says, and only whole, finished runs become bundles."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from rich.progress import Progress

from dst_core.agent_config import AgentConfig
from dst_core.calibration.calibrate import calibrate
from dst_core.calibration.conformal import corrected
from dst_core.calibration.result import CALIBRATION_FILE, Calibration, CalibrationConfig
from dst_core.config import TrainConfig
from dst_core.errors import ExportError, TrainingError
from dst_core.export import ExportConfig, export, main
from dst_core.graphs import BATCH, CANDIDATES, CandidatesGraph, Outputs, UncertaintyGraph, export_graph
from dst_core.manifest import policy_name
from dst_core.parity import check_gradients, check_graph
from dst_core.run import load_run
from dst_core.served_law import fingerprint, served_law
from dst_core.summary import RETURN_LEVELS, Summarise, Summary
from dst_core.train import train
from tests.dst_core.commands import call

SMALL = CalibrationConfig(episodes=40, test_episodes=15, false_alarm_rate=0.05, failure_horizon_s=0.12)
AXES = {"observation": (BATCH,), "action": (BATCH, CANDIDATES)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run in a task with two actions."""
    out = tmp_path_factory.mktemp("train") / "run"
    train(
        TrainConfig(
            env="Reacher-v5",
            steps=130,
            warmup_steps=110,
            batch=16,
            evaluation_episodes=1,
            forecast_updates=5,
            device="cpu",
            out=out,
            agent=AgentConfig(hidden=16, noise_size=4, latent=2, samples=3),
        )
    )
    return out


@pytest.fixture(scope="module")
def bundle(run: Path) -> Path:
    """Not calibrated."""
    out = run.parent / "bundle"
    export(ExportConfig(run=run, out=out, samples=8, uncalibrated=True))
    return out


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of short episodes, all of which end in a fall, calibrated."""
    out = tmp_path_factory.mktemp("train") / "run"
    train(
        TrainConfig(
            env="InvertedPendulum-v5",
            steps=80,
            warmup_steps=60,
            batch=16,
            evaluation_episodes=1,
            forecast_updates=5,
            device="cpu",
            out=out,
            agent=AgentConfig(hidden=16, noise_size=4, latent=2, samples=3, discount=0.95),
        )
    )
    run = load_run(out)
    calibrate(run, served_law(run, samples=8), SMALL, progress=Progress(disable=True)).write(out)
    return out


@pytest.fixture(scope="module")
def calibrated(pendulum: Path) -> Path:
    out = pendulum.parent / "bundle"
    export(ExportConfig(run=pendulum, out=out, samples=8, observation_gradient=True, return_threshold=3.5))
    return out


@pytest.fixture
def known_graphs(calibrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the graphs of `calibrated`, for what does not hang on them: tracing them takes nearly all of an export."""

    def copied(directory: Path, *_: object) -> None:
        for name in ("actor.onnx", "uncertainty.onnx", "policy.onnx", "golden.npz"):
            shutil.copy(calibrated / name, directory)

    monkeypatch.setattr("dst_core.export._write_graphs", copied)


def session(bundle: Path, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(bundle / name, providers=["CPUExecutionProvider"])


def outputs(bundle: Path, name: str, **inputs: np.ndarray) -> dict[str, np.ndarray]:
    graph = session(bundle, name)
    return dict(zip([node.name for node in graph.get_outputs()], graph.run(None, inputs), strict=True))


@pytest.mark.parametrize("batch", [1, 3, 8, 33])
def test_actor_and_policy_agree_with_torch_at_every_batch_size(bundle: Path, run: Path, batch: int) -> None:
    observation = 3 * torch.randn(batch, 10, generator=torch.Generator().manual_seed(batch))
    agent = load_run(run).agent
    with torch.no_grad():
        action = agent.actor(observation).numpy()
    np.testing.assert_allclose(
        outputs(bundle, "actor.onnx", observation=observation.numpy())["action"], action, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        outputs(bundle, "policy.onnx", observation=observation.numpy())["action"], action, rtol=1e-4, atol=1e-5
    )


def test_policy_is_actor_and_uncertainty_in_one(bundle: Path) -> None:
    observation = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    policy = outputs(bundle, "policy.onnx", observation=observation)
    separate = outputs(bundle, "uncertainty.onnx", observation=observation, action=policy["action"][:, None])
    for name, value in separate.items():
        np.testing.assert_allclose(policy[name], value[:, 0], rtol=1e-4, atol=1e-5, err_msg=name)


def test_what_is_exported_is_the_served_law(calibrated: Path, pendulum: Path) -> None:
    run = load_run(pendulum)
    law = served_law(run, samples=8, return_threshold=3.5)
    observation = run.replay.state()["observation"][:20]
    with torch.no_grad():
        summary = law(observation, run.agent.actor(observation))
    found = outputs(calibrated, "policy.onnx", observation=observation.numpy())
    for name, value in summary._asdict().items():
        np.testing.assert_allclose(found[name], value.numpy(), rtol=1e-4, atol=1e-4, err_msg=name)
    assert float(found["data_distance"].max()) == 0.0, "all 80 transitions are references"


def test_threshold_is_the_laws_own_quantile_over_the_data_unless_given(bundle: Path, run: Path) -> None:
    threshold = json.loads((bundle / "manifest.json").read_text())["uncertainty"]["return_threshold"]
    observation = load_run(run).replay.state()["observation"].numpy()
    found = outputs(bundle, "policy.onnx", observation=observation)
    assert threshold == pytest.approx(np.quantile(found["return_samples"], 0.05), rel=1e-4)
    assert found["return_below_threshold"].mean() == pytest.approx(0.05, abs=0.01)


def test_corrected_quantiles_are_those_of_the_manifests_positions(calibrated: Path) -> None:
    calibration = json.loads((calibrated / "manifest.json").read_text())["calibration"]
    observation = np.random.default_rng(3).normal(size=(7, 4)).astype(np.float32)
    found = outputs(calibrated, "policy.onnx", observation=observation)
    card = json.loads((calibrated / "card.json").read_text())["calibration"]
    assert card["positions"] == calibration["positions"]
    raw, std, places = found["return_quantiles_raw"], found["return_std"], np.asarray(card["positions"])
    truth = corrected(raw, std, places, RETURN_LEVELS, floor=card["std_floor"])
    np.testing.assert_allclose(found["return_quantiles_corrected"], truth, rtol=1e-5, atol=1e-5)


def test_calibrated_bundle_holds_card_and_figures(calibrated: Path, pendulum: Path) -> None:
    manifest = json.loads((calibrated / "manifest.json").read_text())
    kept = Calibration.read(pendulum)
    assert kept is not None
    assert manifest["calibration"] == kept.manifest()
    expected = {
        "actor.onnx",
        "uncertainty.onnx",
        "policy.onnx",
        "golden.npz",
        "README.md",
        "card.json",
        "calibration.svg",
        "warning.svg",
    }
    assert set(manifest["files"]) == expected
    assert manifest["uncertainty"]["observation_gradient"] is True
    assert manifest["uncertainty"]["return_threshold"] == 3.5
    assert manifest["uncertainty"]["reference_observations"] == 80
    assert "Not calibrated" not in (calibrated / "README.md").read_text()


def shown(bundle: Path) -> set[str]:
    """Pictures that the card shows."""
    return set(re.findall(r"!\[[^]]+\]\(([^)]+)\)", (bundle / "README.md").read_text()))


def test_bundle_of_a_policy_that_falls_holds_its_warning_figure_hashed_and_shown(
    calibrated: Path, pendulum: Path
) -> None:
    kept = Calibration.read(pendulum)
    assert kept is not None
    assert kept.falls == SMALL.test_episodes
    assert {path.name for path in calibrated.glob("*.svg")} == {"calibration.svg", "warning.svg"} == shown(calibrated)
    figure = (calibrated / "warning.svg").read_bytes()
    assert json.loads((calibrated / "manifest.json").read_text())["files"]["warning.svg"] == sha256(figure).hexdigest()
    curves = json.loads((calibrated / "card.json").read_text())["calibration"]["warnings"]
    assert [curve["signal"] for curve in curves] == [warning.signal for warning in kept.warnings]
    assert len(curves) == 5
    card = (calibrated / "README.md").read_text()
    for warning in kept.warnings:
        assert f"| `{warning.signal}` | {warning.auc.value:.2f} (" in card


@pytest.mark.usefixtures("known_graphs")
def test_bundle_without_falls_neither_holds_nor_shows_a_warning_figure(pendulum: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pendulum, run)
    kept = Calibration.read(run)
    assert kept is not None
    dataclasses.replace(kept, warnings=(), no_warnings="0 of 15 test episodes fell").write(run)
    manifest = export(ExportConfig(run=run, out=tmp_path / "bundle", samples=8))
    assert "warning.svg" not in manifest["files"]
    assert shown(tmp_path / "bundle") == {"calibration.svg"}


@pytest.mark.usefixtures("known_graphs")
def test_calibration_of_this_law_is_taken_and_one_of_another_law_is_made_anew_as_thoroughly(
    pendulum: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(pendulum, run)
    before = (run / CALIBRATION_FILE).read_bytes()
    export(ExportConfig(run=run, out=tmp_path / "same", samples=8, return_threshold=1.0))
    assert (run / CALIBRATION_FILE).read_bytes() == before, "a threshold changes nothing that was calibrated"
    export(ExportConfig(run=run, out=tmp_path / "more", samples=16))
    kept = Calibration.read(run)
    assert kept is not None
    assert kept.sample_count == 16
    assert (kept.episodes, kept.test_episodes) == (SMALL.episodes, SMALL.test_episodes)
    assert kept.false_alarm_rate == SMALL.false_alarm_rate
    assert kept.fingerprint == fingerprint(load_run(run), served_law(load_run(run), samples=16))


@pytest.mark.usefixtures("known_graphs")
@pytest.mark.parametrize(
    "other",
    [
        {"perturbations": ("actuation=0.5",)},
        pytest.param({"environment": "Reacher-v5"}, marks=pytest.mark.slow),
        pytest.param({"discount": 0.9}, marks=pytest.mark.slow),
    ],
)
def test_calibration_in_another_task_is_not_taken(pendulum: Path, tmp_path: Path, other: dict[str, object]) -> None:
    run = tmp_path / "run"
    shutil.copytree(pendulum, run)
    kept = Calibration.read(run)
    assert kept is not None
    dataclasses.replace(kept, **other).write(run)
    export(ExportConfig(run=run, out=tmp_path / "bundle", samples=8))
    assert Calibration.read(run) == kept
    assert json.loads((tmp_path / "bundle" / "card.json").read_text())["calibration"] == json.loads(
        json.dumps(dataclasses.asdict(kept))
    )


def test_fingerprint_is_that_of_actor_and_law_alone(pendulum: Path) -> None:
    run, other = load_run(pendulum), load_run(pendulum)
    law = served_law(run, samples=8)
    same = fingerprint(run, law)
    assert same == fingerprint(other, served_law(other, samples=8, return_threshold=2.0))
    assert same != fingerprint(run, served_law(run, samples=8, critic=run.agent.critics.critic))
    with torch.no_grad():
        other.agent.actor.layers[0].bias.add_(1e-6)
    assert same != fingerprint(other, law)


def test_exported_gradient_samples_are_the_slopes_of_exported_return_samples(bundle: Path) -> None:
    rng = np.random.default_rng(2)
    observation, action = rng.normal(size=(4, 10)).astype(np.float32), rng.uniform(-1, 1, (4, 3, 2)).astype(np.float32)
    gradient = outputs(bundle, "uncertainty.onnx", observation=observation, action=action)["gradient_samples"]
    step = np.float32(1e-2)
    for index in range(2):
        shift = np.zeros(2, np.float32)
        shift[index] = step
        up, down = (
            outputs(bundle, "uncertainty.onnx", observation=observation, action=a)["return_samples"]
            for a in (action + shift, action - shift)
        )
        np.testing.assert_allclose(
            gradient[..., index], (up - down) / (2 * step), rtol=0.02, atol=0.02 * np.abs(gradient).max()
        )


def test_golden_outputs_are_those_of_the_graph(bundle: Path) -> None:
    with np.load(bundle / "golden.npz", allow_pickle=False) as golden:
        found = outputs(bundle, "policy.onnx", observation=golden["observation"])
        assert set(found) == set(golden.files) - {"observation"}
        for name, value in found.items():
            np.testing.assert_allclose(value, golden[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_manifest_names_what_the_graphs_take_and_give(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert len(manifest["observation"]) == 10
    assert [channel["low"] for channel in manifest["action"]] == [-1.0, -1.0]
    assert manifest["control_period_s"] == pytest.approx(0.02)
    assert manifest["evaluation"]["episodes"] == 1
    assert manifest["calibration"] is None
    assert set(manifest["files"]) == {path.name for path in bundle.iterdir()} - {"manifest.json"}
    assert "Not calibrated" in (bundle / "README.md").read_text()


def test_same_run_gives_the_same_graph_outputs_twice(bundle: Path, run: Path, tmp_path: Path) -> None:
    export(ExportConfig(run=run, out=tmp_path / "again", samples=8, uncalibrated=True))
    observation = np.ones((1, 10), np.float32)
    first, second = (outputs(where, "policy.onnx", observation=observation) for where in (bundle, tmp_path / "again"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_bundle_is_never_overwritten(bundle: Path, run: Path) -> None:
    with pytest.raises(ExportError, match="never changes"):
        export(ExportConfig(run=run, out=bundle))


def test_interrupted_run_is_refused_with_the_cure(run: Path, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped)
    half = load_run(stopped)
    half.progress["forecast"] = False
    half.save(stopped)
    with pytest.raises(TrainingError, match="--resume"):
        export(ExportConfig(run=stopped, out=tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


def test_run_whose_configuration_names_another_task_is_refused(run: Path, tmp_path: Path) -> None:
    edited = tmp_path / "edited"
    shutil.copytree(run, edited)
    plain = json.loads((edited / "config.json").read_text())
    (edited / "config.json").write_text(json.dumps({**plain, "env": "InvertedPendulum-v5"}))
    with pytest.raises(TrainingError, match="env was Reacher-v5, now InvertedPendulum-v5"):
        export(ExportConfig(run=edited, out=tmp_path / "bundle"))


def test_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no run"):
        export(ExportConfig(run=tmp_path, out=tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"name": "Bad Name"}, "lower-case"),
        ({"samples": 2}, "lie in 4..4096"),
        ({"return_threshold": float("nan")}, "finite number"),
    ],
)
def test_bad_choices_are_refused(choice: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ExportConfig(run=Path("run"), out=Path("bundle"), **choice)


def test_parity_check_notices_another_network(bundle: Path, run: Path) -> None:
    actor = load_run(run).agent.actor
    with torch.no_grad():
        actor.layers[0].bias.add_(0.01)
    with pytest.raises(ExportError, match="differs from torch"):
        check_graph(bundle / "actor.onnx", actor, {"observation": torch.randn(8, 10)}, ["action"])


def test_fixed_batch_size_is_noticed(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            return observation.sum(0, keepdim=True)

    with pytest.raises(RuntimeError, match="batch axis of action was fixed to 1"):
        export_graph(Fixed(), {"observation": torch.randn(4, 2)}, ["action"], tmp_path / "fixed.onnx")


def test_fixed_number_of_candidates_is_noticed(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
            return observation.unsqueeze(1) + action.sum(1, keepdim=True)

    inputs = {"observation": torch.randn(4, 2), "action": torch.randn(4, 3, 2)}
    with pytest.raises(RuntimeError, match="candidates axis of sum was fixed to 1"):
        export_graph(Fixed(), inputs, ["sum"], tmp_path / "fixed.onnx", axes=AXES)


class WrongSlope(UncertaintyGraph):
    """Gives returns that are right and one gradient that is one part in a thousand too steep."""

    wrong = "gradient_samples"

    def of_standardised(self, *given: torch.Tensor) -> Summary:
        summary = super().of_standardised(*given)
        return summary._replace(**{self.wrong: 1.001 * getattr(summary, self.wrong)})


class WrongSensor(WrongSlope):
    wrong = "observation_gradient_mean"


def steeper(path: Path, output: str, to: Path) -> Path:
    """Writes the graph with one output one part in a thousand too large."""
    model = onnx.load(path)
    (node,) = [node for node in model.graph.node if output in node.output]
    node.output[list(node.output).index(output)] = "right"
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(1.001), "factor"))
    model.graph.node.append(onnx.helper.make_node("Mul", ["right", "factor"], [output]))
    onnx.save(model, to)
    return to


@pytest.mark.parametrize("kind", [UncertaintyGraph, WrongSlope, WrongSensor])
def test_gradient_check_notices_a_wrong_gradient(
    pendulum: Path, calibrated: Path, tmp_path: Path, kind: type[UncertaintyGraph]
) -> None:
    """Which the comparison with torch cannot, where torch is as wrong."""
    run, path = load_run(pendulum), calibrated / "uncertainty.onnx"
    law = served_law(run, samples=8, return_threshold=3.5)
    if issubclass(kind, WrongSlope):
        law.__class__ = kind
        path = steeper(path, kind.wrong, tmp_path / "steeper.onnx")
    outputs = Outputs(observation_gradient=True)
    observation = run.replay.state()["observation"][:8]
    inputs = {"observation": observation, "action": 6 * torch.rand(8, 5, 1) - 3}
    check_graph(path, CandidatesGraph(law, outputs).eval(), inputs, list(outputs.names), threshold=3.5)
    asked = (path, law, observation, inputs["action"][:, 0])
    if issubclass(kind, WrongSlope):
        with pytest.raises(ExportError, match=f"{kind.wrong} against autograd"):
            check_gradients(*asked)
    else:
        check_gradients(*asked)


class Marks(torch.nn.Module):
    """Outputs that hang on which side of a mark samples lie, of samples that are given; `nudge` plays the part of rounding."""

    def __init__(self, outputs: list[str], nudge: float) -> None:
        super().__init__()
        self.outputs, self.nudge = outputs, nudge
        self.summarise = Summarise(count=4, critics=2, return_threshold=0.0)

    def forward(self, samples: torch.Tensor) -> tuple[torch.Tensor, ...]:
        nudged = samples + self.nudge
        passed_on = {"data_distance": samples[:, 0], "observation_gradient": samples}
        summary = self.summarise(nudged, nudged.unsqueeze(1), **passed_on)
        return tuple(getattr(summary, name) for name in self.outputs)


MARKED = ["return_below_threshold", "gradient_sign_agreement"]
BEHIND = ["gradient_resultant_length", "gradient_samples", "return_samples"]


@pytest.fixture(
    scope="module",
    params=[(-1e-6, 2e-6, True), (-2e-3, 4e-3, False), (-2e-5, 4e-5, True)],
    ids=["within rounding", "a clear sample", "just within"],
)
def nudged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, torch.Tensor], bool]:
    """A graph whose samples are off, samples of which one changes sides for it, and whether it may."""
    sample, nudge, agrees = request.param
    samples = torch.tensor([[1.0, 0.5, sample, 0.7]]).repeat(8, 1)
    samples[1:, 2] = -0.3
    path = tmp_path_factory.mktemp("marks") / "marks.onnx"
    export_graph(Marks([*MARKED, *BEHIND], nudge), {"samples": samples}, [*MARKED, *BEHIND], path)
    return path, {"samples": samples}, agrees


@pytest.mark.parametrize("marked", MARKED)
def test_only_samples_of_rounding_size_may_change_sides(
    nudged: tuple[Path, dict[str, torch.Tensor], bool], marked: str
) -> None:
    path, samples, agrees = nudged
    outputs = [marked, *BEHIND]
    if agrees:
        check_graph(path, Marks(outputs, 0.0), samples, outputs)
    else:
        with pytest.raises(ExportError, match=f"{marked} at batch 1 differs"):
            check_graph(path, Marks(outputs, 0.0), samples, outputs)


def test_run_with_fewer_transitions_than_probes_is_exported(tmp_path: Path) -> None:
    agent = AgentConfig(hidden=16, noise_size=4, latent=2, samples=3)
    shortest = {"steps": 2, "warmup_steps": 1, "batch": 1, "evaluation_episodes": 1, "forecast_updates": 1}
    train(TrainConfig(env="Reacher-v5", device="cpu", out=tmp_path / "run", agent=agent, **shortest))
    export(ExportConfig(run=tmp_path / "run", out=tmp_path / "bundle", samples=4, uncalibrated=True))
    with np.load(tmp_path / "bundle" / "golden.npz", allow_pickle=False) as golden:
        assert len(golden["observation"]) == 12


def test_policy_name_made_from_a_task_is_one_that_may_be_given() -> None:
    assert policy_name("InvertedPendulum-v5") == "invertedpendulum-v5"
    for task in ("namespace/" + "VeryLongTaskName" * 8 + "-v0", "_Odd:Name-v1", "Größe-v0"):
        assert ExportConfig(run=Path("run"), out=Path("bundle"), name=policy_name(task)).name


def test_bundle_that_cannot_be_written_gets_one_line_and_exit_code_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert call(main, run, "--out", tmp_path / "file" / "bundle") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "choose an --out that can be written" in line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_export_interrupted_at_a_graph_leaves_nothing_behind(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        assert list(tmp_path.glob("bundles/.export-*"))
        os.kill(os.getpid(), number)

    monkeypatch.setattr("dst_core.export.export_graph", interrupted)
    assert call(main, run, "--out", tmp_path / "bundles" / "bundle", "--uncalibrated") == 128 + number
    assert capsys.readouterr().err == "dst-export: interrupted; nothing was exported\n"
    assert list((tmp_path / "bundles").iterdir()) == []


def test_interrupted_process_of_an_export_leaves_nothing_behind(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundles" / "bundle"
    call = [sys.executable, "-m", "dst_core.export", str(run), "--out", str(out), "--uncalibrated"]
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("bundles/.export-*")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1] == "dst-export: interrupted; nothing was exported"
    assert "Traceback" not in errors
    assert list(out.parent.iterdir()) == []


def test_run_of_a_method_without_the_law_is_not_exported(tmp_path: Path) -> None:
    train(
        TrainConfig(
            env="InvertedPendulum-v5",
            steps=60,
            warmup_steps=40,
            batch=16,
            evaluation_episodes=1,
            device="cpu",
            agent=AgentConfig(algorithm="td3", hidden=16),
            out=tmp_path / "run",
        )
    )
    with pytest.raises(TrainingError, match="td3, which learns no law"):
        export(ExportConfig(run=tmp_path / "run", out=tmp_path / "bundle"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.usefixtures("known_graphs")
def test_samples_are_shared_evenly_by_any_number_of_critics(tmp_path: Path) -> None:
    train(
        TrainConfig(
            env="InvertedPendulum-v5",
            steps=60,
            warmup_steps=40,
            batch=16,
            evaluation_episodes=1,
            forecast_updates=2,
            device="cpu",
            agent=AgentConfig(hidden=16, noise_size=4, latent=2, samples=3, critics=3, critic_noise="input"),
            out=tmp_path / "run",
        )
    )
    for samples, remedy in ((8, 9), (4, 6)):
        with pytest.raises(ExportError, match=f"the run's 3 critics.*use --samples {remedy}"):
            export(ExportConfig(run=tmp_path / "run", out=tmp_path / "bundle", samples=samples))
    manifest = export(ExportConfig(run=tmp_path / "run", out=tmp_path / "bundle", samples=9, uncalibrated=True))
    assert manifest["uncertainty"]["sample_count"] == 9
