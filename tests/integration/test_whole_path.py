"""Train, export, serve, drive: the real commands of every half, one after the other."""

import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from dst_core.evaluate import evaluate
from server.bundle import load_bundle
from server.errors import BundleError
from tests.integration.conftest import PERTURBATIONS, ServerProcess


def drive(server: str, *more: str, budget_s: float = 5.0) -> list[str]:
    """The ample budget keeps a busy machine from making ticks late."""
    task = ["--env", "InvertedPendulum-v5", "--perturb", *PERTURBATIONS, "--budget-s", str(budget_s)]
    return [sys.executable, "-m", "sim_bridge", "--server", server, *task, *more]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)


def test_returns_driven_through_the_server_are_those_of_the_exported_actor(
    server: ServerProcess, bundle: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    done = run(drive(server.grpc, "--episodes", "4", "--seed", "11", "--report", str(report)))
    assert done.returncode == 0, done.stdout + done.stderr
    driven = json.loads(report.read_text())
    actor = onnxruntime.InferenceSession(bundle / "actor.onnx", providers=["CPUExecutionProvider"])
    alone = evaluate(
        lambda observation: actor.run(["action"], {"observation": observation[None]})[0][0],
        environment="InvertedPendulum-v5",
        perturbations=PERTURBATIONS,
        seeds=[episode["seed"] for episode in driven["episodes"]],
    )
    assert [episode["return"] for episode in driven["episodes"]] == pytest.approx(alone.returns)
    assert driven["late_ticks"] == 0
    assert driven["policy"] == "pendulum"
    assert server.stop() == 0


def test_record_of_a_drive_replays_exactly(server: ServerProcess, tmp_path: Path) -> None:
    record = tmp_path / "drive.mcap"
    assert run(drive(server.grpc, "--episodes", "2", "--record", str(record))).returncode == 0
    replayed = run([sys.executable, "-m", "sim_bridge.replay", str(record), "--server", server.grpc])
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr


def test_server_killed_during_an_episode_ends_the_drive_with_everything_saved(
    server: ServerProcess, tmp_path: Path
) -> None:
    record, report = tmp_path / "drive.mcap", tmp_path / "report.json"
    saved = ("--record", str(record), "--report", str(report))
    command = drive(server.grpc, "--episodes", "1000", "--rate", "50", "--hold-timeout-s", "0.3", *saved, budget_s=2.0)
    robot = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert robot.stdout is not None
    for line in robot.stdout:
        if re.search(r"episode", line):
            break
    server.process.send_signal(signal.SIGKILL)
    rest, _ = robot.communicate(timeout=60)
    assert robot.returncode == 4, rest
    assert "Traceback" not in rest
    assert json.loads(report.read_text())["guard"]["stops"] == 1
    assert record.stat().st_size > 0


def test_robot_of_another_task_does_not_move(server: ServerProcess) -> None:
    command = [sys.executable, "-m", "sim_bridge", "--server", server.grpc, "--env", "Reacher-v5", "--episodes", "1"]
    done = run(command)
    assert done.returncode == 2
    assert "hinge" in done.stdout + done.stderr


def test_page_metrics_and_openapi_are_served_beside_the_policy(server: ServerProcess) -> None:
    def get(path: str) -> str:
        with urllib.request.urlopen(server.http + path, timeout=10) as reply:
            return reply.read().decode()

    assert "<!doctype html>" in get("/").lower()
    assert "/v1/policies/{name}/act" in json.loads(get("/openapi.json"))["paths"]
    assert run(drive(server.grpc, "--episodes", "1")).returncode == 0
    assert re.search(r'dst_\w+_total\{[^}]*policy="pendulum"[^}]*\} [1-9]', get("/metrics"))


def test_act_over_http_is_the_exported_policy(server: ServerProcess, bundle: Path) -> None:
    observation = [0.01, -0.02, 0.1, 0.2]
    request = urllib.request.Request(
        server.http + "/v1/policies/pendulum/act",
        json.dumps({"observation": observation}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as reply:
        decision = json.load(reply)
    policy = onnxruntime.InferenceSession(bundle / "policy.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in policy.get_outputs()]
    outputs = dict(zip(names, policy.run(names, {"observation": np.array([observation], np.float32)}), strict=True))
    assert decision["action"] == pytest.approx(outputs.pop("action")[0].tolist(), rel=1e-5)
    served = {name for name, value in decision["summary"].items() if value is not None}
    assert served == {name for name in names if name != "action" and not name.endswith("_samples")}
    for name in served:
        assert decision["summary"][name] == pytest.approx(outputs[name][0].tolist(), rel=1e-5), name


def test_calibration_is_told_from_the_bundle_to_the_robot(server: ServerProcess, bundle: Path) -> None:
    calibration = json.loads((bundle / "manifest.json").read_text())["calibration"]
    with urllib.request.urlopen(server.http + "/v1/policies/pendulum", timeout=10) as reply:
        described = json.load(reply)
    assert described["calibrated"]
    assert described["calibration"]["corrected_coverage"] == calibration["corrected"]["coverage"]
    assert described["calibration"]["data_distance_threshold"] == calibration["data_distance_threshold"]
    done = run(drive(server.grpc, "--episodes", "1"))
    assert done.returncode == 0
    assert "not calibrated" not in done.stdout


def test_exported_bundle_is_inspected_and_does_not_differ_from_itself(bundle: Path) -> None:
    command = [sys.executable, "-m", "server.inspection", str(bundle), "--diff", str(bundle), "--json"]
    done = run(command)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["bundle"]["task"]["perturbations"] == list(PERTURBATIONS)
    assert not any(shown["difference"]["changes"].values())
    assert {gap["served"]["largest"] for gap in shown["difference"]["gaps"]} == {0.0}


@pytest.mark.parametrize(
    "file",
    [
        "actor.onnx",
        "uncertainty.onnx",
        "policy.onnx",
        "golden.npz",
        "manifest.json",
        "README.md",
        "card.json",
        "calibration.svg",
    ],
)
def test_exported_bundle_with_one_byte_changed_is_refused(bundle: Path, tmp_path: Path, file: str) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    content = bytearray((copy / file).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / file).write_bytes(content)
    with pytest.raises(BundleError, match=re.escape(file)):
        load_bundle(copy)


def test_server_does_not_start_with_an_exported_bundle_that_was_cut_short(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "policy.onnx").write_bytes((copy / "policy.onnx").read_bytes()[:-1])
    done = run([sys.executable, "-m", "server", str(copy), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
    assert done.returncode == 2
    assert "policy.onnx" in done.stderr
    assert "Traceback" not in done.stderr
