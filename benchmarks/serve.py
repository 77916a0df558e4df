"""Time of a control round trip through a real server process on loopback, beside inference in process and an echo."""

import contextlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.echo import echo_stream
from benchmarks.timing import Timing, machine, summarise, time_call
from protos import policy_pb2 as pb
from server.bundle import load_bundle
from server.runtime import Detail, Runtime
from sim_bridge.client import PolicyClient
from sim_bridge.control_session import ControlSession, Outcome

STOP_TIMEOUT_S = 20
BUDGET_NS = 1_000_000_000


def measure(bundle: Path, *, runs: int, rate_hz: float) -> tuple[list[Timing], dict[str, Any]]:
    """Time control round trips with the full summary, paced at `rate_hz` and back to back; and `Act`, HTTP, echo, inference.

    The share of late ticks counts paced control round trips longer than one period.
    """
    loaded = load_bundle(bundle)
    rows = np.asarray(loaded.golden["observation"], np.float64)
    runtime = Runtime(loaded)
    period_s = 1 / rate_hz
    timings = []
    with _server(bundle) as (grpc, page):
        with PolicyClient(grpc) as client:
            client.connect()
            with client.control(robot="benchmark") as session:
                paced = _control(session, rows, runs=runs, period_s=period_s, first_tick=1)
                quick = _control(session, rows, runs=runs, period_s=0.0, first_tick=2 * runs + 1)
            timings.append(summarise(f"control, paced at {rate_hz:g} Hz", paced))
            timings.append(summarise("control, back to back", quick))
            timings.append(time_call("act, back to back", lambda: client.act(rows[0]), runs=runs))
        name = loaded.manifest.name
        body = b'{"observation": [' + ",".join(map(repr, rows[0].tolist())).encode() + b"]}"
        request = urllib.request.Request(  # noqa: S310 (a loopback address of our own server)
            f"{page}/v1/policies/{name}/act", body, {"Content-Type": "application/json"}
        )
        timings.append(time_call("http act, a connection each", lambda: _post(request), runs=min(runs, 300)))
    with echo_stream() as echo:
        timings.append(time_call(f"gRPC echo stream, paced at {rate_hz:g} Hz", echo, runs=runs, period_s=period_s))
        timings.append(time_call("gRPC echo stream, back to back", echo, runs=runs))
    row = rows[:1].astype(np.float32)
    infer = lambda: runtime.infer(row, Detail.SUMMARY)  # noqa: E731
    timings.append(time_call(f"inference in process, paced at {rate_hz:g} Hz", infer, runs=runs, period_s=period_s))
    timings.append(time_call("inference in process, back to back", infer, runs=runs))
    late = sum(duration > period_s for duration in paced)
    setting = {
        "policy": name,
        "observation": rows.shape[1],
        "samples": loaded.manifest.uncertainty.sample_count,
        "rate_hz": rate_hz,
        "late": f"{late} of {len(paced)}",
        "late_share": late / len(paced),
        **machine(),
    }
    return timings, setting


def _control(session: ControlSession, rows: np.ndarray, *, runs: int, period_s: float, first_tick: int) -> list[float]:
    durations = []
    due = time.perf_counter()
    for index in range(runs + runs // 10):
        due = max(due + period_s, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
        reply = session.decide(
            tick=first_tick + index,
            observation=rows[index % len(rows)],
            deadline_ns=time.monotonic_ns() + BUDGET_NS,
            status=pb.RobotStatus(guard=pb.GUARD_STATE_NOMINAL),
        )
        if reply.outcome is not Outcome.OK:
            raise RuntimeError(f"the server gave no decision: {reply.problem}")
        durations.append(reply.round_trip_ns / 1e9)
    return durations[runs // 10 :]


def _post(request: urllib.request.Request) -> None:
    with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 (as above)
        reply.read()


@contextlib.contextmanager
def _server(bundle: Path) -> Iterator[tuple[str, str]]:
    """A server process on free ports; gives its gRPC address and HTTP base."""
    command = [sys.executable, "-m", "server", str(bundle), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready = next((line for line in process.stdout if line.startswith("ready ")), None)
        if ready is None:
            raise RuntimeError("the server ended before it was ready; its message stands above")
        grpc, page = (part.partition("=")[2] for part in ready.split()[1:3])
        yield grpc, page
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)
