"""Serving measured small: real servers and clients in processes of their own, and a peer that is one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import psutil
import pytest

from benchmarks import serve, serve_growth, server_process
from benchmarks.app import Serve, ServeGrowth, main, run
from benchmarks.errors import BenchmarkError
from benchmarks.paced import Calls
from benchmarks.peers import environment as environments
from benchmarks.peers import peer as peers
from benchmarks.robots import Load
from benchmarks.server_process import free_ports, listening_process
from benchmarks.timing import Timing
from benchmarks.verdicts import verdicts

OWN = {"control", "act", "http_act", "echo_stream", "echo_stream_direct", "infer"}
SMALL_PEER = """
# /// script
# dependencies = ["small"]
# [tool.dst-bench.rows]
# small_http = { name = "a small server", wire = "http" }
# ///
import contextlib
import http.server
import json
import urllib.request

import numpy as np

from benchmarks.child import main
from benchmarks.peers.model import open_model


def serve(case):
    model = open_model(case)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            row = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            outputs = model(np.asarray(row, np.float32)[np.newaxis])
            body = json.dumps({name: values[0].tolist() for name, values in outputs.items()}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    http.server.HTTPServer(("127.0.0.1", case.port("http")), Handler).serve_forever()


@contextlib.contextmanager
def client(case):
    body = json.dumps(case.observations[0]).encode()

    def ask():
        with urllib.request.urlopen(urllib.request.Request(case.http, body)) as reply:
            case.check(json.load(reply))

    yield ask


main(clients={"http": client}, serve=serve)
"""
BROKEN_PEER = SMALL_PEER.replace("small_http", "broken_http").replace("model = open_model(case)", "raise OSError('no')")


def measured(command: Serve, capsys: pytest.CaptureFixture[str]) -> dict:
    run(command)
    return json.loads(capsys.readouterr().out)


def test_serve_gives_percentiles_of_every_path_and_the_share_of_late_ticks(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = measured(Serve(bundle=bundle, runs=12, rate=200.0, json=True), capsys)
    assert set(result) == {"p50_us", "p99_us", "late_share", "setting"}
    keys = OWN | {f"{key}_back_to_back" for key in OWN}
    assert set(result["p50_us"]) == set(result["p99_us"]) == keys
    assert all(0 < result["p50_us"][key] <= result["p99_us"][key] for key in keys)
    assert result["late_share"] * 12 == pytest.approx(round(result["late_share"] * 12))
    assert 0 <= result["late_share"] <= 1
    assert result["setting"].items() >= {"rate_hz": 200.0, "runs": 12, "samples": 4, "robots": 1}.items()


def test_peers_are_measured_in_the_same_run_and_one_that_fails_is_left_out_with_its_reason(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small.py").write_text(SMALL_PEER, encoding="utf-8")
    (tmp_path / "broken.py").write_text(BROKEN_PEER, encoding="utf-8")
    (tmp_path / "triton_client.py").write_text(SMALL_PEER, encoding="utf-8")
    monkeypatch.setattr(peers, "HERE", tmp_path)
    monkeypatch.setattr("benchmarks.subjects.PEERS", ("broken", "small"))
    monkeypatch.setattr("benchmarks.subjects.OPEN_INFERENCE", ())
    monkeypatch.setattr(peers, "environment", lambda directory, name, dependencies: Path(sys.executable))
    before = set(psutil.Process().children(recursive=True))
    command = Serve(bundle=bundle, runs=10, rate=200.0, robots=2, load_s=0.1, peers=True, peers_dir=tmp_path, json=True)
    run(command)
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert {"small_http", "small_http_back_to_back"} <= set(result["p50_us"])
    assert not any(key.startswith("broken") for key in result["p50_us"])
    assert "broken is left out: its server ended: OSError: no" in shown.err
    assert set(result["load"]) == {"control", "act", "http_act", "echo_stream", "echo_stream_direct", "small_http"}
    for load in result["load"].values():
        assert load["requests_per_core_s"] > 0
        assert min(load[f"resident_{when}_mb"] for when in ("start", "early", "end")) > 1
    assert result["late_share"] == result["load"]["control"]["late_share"]
    assert set(psutil.Process().children(recursive=True)) <= before, "every process that was started has ended"


def test_every_peer_says_what_it_needs_and_which_rows_it_gives() -> None:
    found = [peers.read_peer(name) for name in peers.PEERS]
    keys = {row.key for peer in found for row in peer.rows}
    assert keys >= {"openpi_ws", "mlserver_grpc", "kserve_grpc", "litserve_http"}
    assert all(peers._metadata(name)["dependencies"] for peer in found for name in (peer.name, peer.client))


def wheel(directory: Path, name: str, version: str, requires: str = "") -> None:
    """A package that holds nothing."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(directory / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")
        archive.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            + (f"Requires-Dist: {requires}\n" if requires else ""),
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first environment that is made is kept as it came, for copies: making one takes seconds."""
    return tmp_path_factory.mktemp("environments") / "blank"


@pytest.fixture
def index(blank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index on this disk alone."""
    real = environments._run

    def run_or_copy(command: Sequence[str]) -> None:
        if command[1:3] != ["-m", "venv"]:
            real(command)
        elif blank.exists():
            shutil.copytree(blank, command[3], symlinks=True)
        else:
            real(command)
            shutil.copytree(command[3], blank, symlinks=True)

    monkeypatch.setattr(environments, "_run", run_or_copy)
    directory = tmp_path / "wheels"
    directory.mkdir()
    wheel(directory, "onnxruntime", onnxruntime.__version__)
    wheel(directory, "torch", "9.9")
    wheel(directory, "light", "1.0")
    wheel(directory, "heavy", "1.0", requires="torch")
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(directory)), ("PIP_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, value)
    return directory


def test_environment_is_made_once_and_kept(index: Path, tmp_path: Path) -> None:
    python = environments.environment(tmp_path / "kept", "light", ["light"])
    subprocess.run([python, "-c", "import light, onnxruntime"], check=True)
    (index / "light-1.0-py3-none-any.whl").unlink()
    assert environments.environment(tmp_path / "kept", "light", ["light"]) == python
    with pytest.raises(BenchmarkError, match="cannot be installed here"):
        environments.environment(tmp_path / "kept", "light", ["light", "light>=1"])


def test_peer_that_would_bring_torch_is_refused_before_anything_is_installed(index: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="it would install torch"):
        environments.environment(tmp_path / "kept", "heavy", ["heavy"])
    assert not list((tmp_path / "kept").iterdir())


def timing(key: str, p50: float, p99: float) -> Timing:
    return Timing(key=key, name=key, runs=10, p50_us=p50, p99_us=p99)


def test_verdicts_are_the_ratios_that_are_asked_for() -> None:
    timings = [
        timing(f"{key}{suffix}", factor * p50, factor * p99)
        for suffix, factor in (("", 1.0), ("_back_to_back", 0.5))
        for key, p50, p99 in (
            ("control", 330, 660),
            ("echo_stream", 200, 300),
            ("infer", 100, 150),
            ("openpi_ws", 300, 400),
            ("mlserver_grpc", 1000, 2000),
        )
    ]
    load = Load(
        calls=Calls(), requests_per_core_s=1.0, resident_start_mb=80.0, resident_early_mb=90.0, resident_end_mb=301.0
    )
    found = {
        verdict.name: (verdict.found, verdict.met)
        for verdict in verdicts(timings, late_share=0.002, ready_s=2.0, loads={"control": load})
    }
    assert found["control over (echo + inference), paced"] == (pytest.approx(1.1), True)
    assert found["control's p99 over its p50, paced"] == (pytest.approx(2.0), True)
    assert found["control over openpi's wire, back to back"] == (pytest.approx(1.1), False)
    assert found["control over MLServer's gRPC, paced"] == (pytest.approx(0.33), True)
    assert found["share of ticks late"] == (0.002, False)
    assert found["seconds from start to ready"] == (2.0, True)
    assert found["resident memory at the end, MB"] == (301.0, False)


def test_tables_for_people_hold_every_row_and_verdict(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Serve(bundle=bundle, runs=10, rate=200.0, robots=2, load_s=0.1))
    shown = capsys.readouterr().out
    for text in (
        "control, paced at 200 Hz",
        "gRPC echo stream, back to back",
        "2 robots at 200 Hz each",
        "what is asked",
    ):
        assert text in shown
    assert shown.count("met") >= 6


def test_own_client_that_fails_ends_the_measurement(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = ("control", "control", "no_such_wire", "grpc")
    monkeypatch.setattr("benchmarks.subjects.OWN", (broken,))
    with pytest.raises(BenchmarkError, match=r"control: its client ended: .*no_such_wire"):
        serve.measure(bundle, runs=10, rate_hz=200.0)


def test_server_that_does_not_end_when_asked_is_killed_with_what_it_started() -> None:
    child = "import time; time.sleep(60)"
    program = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    started = psutil.Process(int(process.stdout.readline()))
    server_process.stop(process, timeout_s=0.1)
    assert process.returncode == -signal.SIGKILL
    psutil.wait_procs([started], timeout=10)
    assert not started.is_running() or started.status() == psutil.STATUS_ZOMBIE


def test_server_that_cannot_start_is_reported(tmp_path: Path) -> None:
    with (
        pytest.raises(BenchmarkError, match="ended before it was ready: dst-serve"),
        server_process.server_process(tmp_path),
    ):
        pass
    (port,) = free_ports(1)
    with (
        pytest.raises(BenchmarkError, match="its server ended: too early"),
        listening_process([sys.executable, "-c", "print('too early')"], ports=[port]),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0"], "--rate must be a finite number > 0, got 0.0"),
        (["--load-s", "0.01"], "--load-s must be a finite number that holds 10 ticks, got 0.01"),
        (["--robots", "65"], "--robots must lie between 1 and 64, got 65"),
        (["no-such-bundle"], "no-such-bundle"),
    ],
)
def test_what_cannot_be_measured_exits_2_with_the_reason(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dst-bench", "serve", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    try:
        code = main()
    except SystemExit as ended:  # what the command line itself refuses
        code = ended.code
    assert code == 2
    assert message in capsys.readouterr().err


def test_growth_of_serving_gives_every_size_of_every_axis(
    bundles: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def known(_: Path, *, env: str, samples: Sequence[int], hidden: int | None = None) -> list[Path]:
        asked.append((env, hidden, tuple(samples)))
        return bundles[: len(samples)]

    def one_known(directory: Path, *, env: str, samples: int, hidden: int) -> Path:
        return known(directory, env=env, samples=(samples,), hidden=hidden)[0]

    monkeypatch.setattr(serve_growth, "make_reference_bundles", known)
    monkeypatch.setattr(serve_growth, "make_reference_bundle", one_known)
    monkeypatch.setattr(serve_growth, "REFERENCE", {"robots": 1, "samples": 4, "hidden": 8})
    monkeypatch.setattr(serve_growth, "AXES", {"robots": (1, 3), "samples": (4, 8), "hidden": (8, 16)})
    monkeypatch.setattr(serve_growth, "ENV", "InvertedPendulum-v5")
    run(ServeGrowth(runs=10, rate=50.0, figure=tmp_path / "new" / "serving", json=True))
    result = json.loads(capsys.readouterr().out)
    assert asked == [("InvertedPendulum-v5", None, (4, 8)), ("InvertedPendulum-v5", 16, (4,))]
    policies = {f"{axis}_{size}" for axis, sizes in (("samples", (4, 8)), ("hidden", (8, 16))) for size in sizes}
    keys = {f"{policy}_{kind}" for policy in policies for kind in ("control", "infer")}
    assert set(result["p50_us"]) == set(result["p99_us"]) == keys | {"robots_1_control", "robots_3_control"}
    assert min(result["p50_us"].values()) > 0
    assert set(result["late_share"]) == {"robots_1", "robots_3"}
    assert "</svg>" in (tmp_path / "new" / "serving.svg").read_text()
    assert (tmp_path / "new" / "serving.png").stat().st_size > 10_000
