"""Time of a control round trip through a real server process on loopback, beside inference in process and an echo."""

import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.echo import echo_stream
from benchmarks.paced_control import round_trips
from benchmarks.server_process import server_process
from benchmarks.timing import Timing, machine, summarise, time_call
from server.bundle import load_bundle
from server.runtime import Detail, Runtime
from sim_bridge.client import PolicyClient
from sim_bridge.clock import MonotonicClock

HTTP_RUNS = 300


def measure(bundle: Path, *, runs: int, rate_hz: float) -> tuple[list[Timing], float, dict[str, Any]]:
    """Time control round trips with the full summary, paced at `rate_hz` and back to back; and `Act`, HTTP, echo, inference.

    Returns:
        The timings; the share of paced ticks whose decision was not there by the end of their period; the setting.
    """
    loaded = load_bundle(bundle)
    rows = np.asarray(loaded.golden["observation"], np.float64)
    runtime = Runtime(loaded)
    period_s = 1 / rate_hz
    timings = []
    with server_process(bundle) as (grpc, page):
        with PolicyClient(grpc) as client:
            client.connect()
            with client.control(robot="benchmark") as session:
                trips = partial(round_trips, session, rows, runs=runs, clock=MonotonicClock())
                paced = trips(period_s=period_s, first_tick=1)
                quick = trips(period_s=0.0, first_tick=2 * runs + 1)
            timings.append(summarise("control", f"control, paced at {rate_hz:g} Hz", paced.durations_s))
            timings.append(summarise("control_back_to_back", "control, back to back", quick.durations_s))
            timings.append(time_call("act", "act, back to back", lambda: client.act(rows[0]), runs=runs))
        name = loaded.manifest.name
        body = b'{"observation": [' + ",".join(map(repr, rows[0].tolist())).encode() + b"]}"
        request = urllib.request.Request(  # noqa: S310 (a loopback address of our own server)
            f"{page}/v1/policies/{name}/act", body, {"Content-Type": "application/json"}
        )
        timings.append(
            time_call("http_act", "http act, a connection each", lambda: _post(request), runs=min(runs, HTTP_RUNS))
        )
    with echo_stream() as echo:
        paced_echo = f"gRPC echo stream, paced at {rate_hz:g} Hz"
        timings.append(time_call("echo_stream", paced_echo, echo, runs=runs, period_s=period_s))
        timings.append(time_call("echo_back_to_back", "gRPC echo stream, back to back", echo, runs=runs))
    infer = partial(runtime.infer, rows[:1].astype(np.float32), Detail.SUMMARY)
    paced_inference = f"inference in process, paced at {rate_hz:g} Hz"
    timings.append(time_call("infer", paced_inference, infer, runs=runs, period_s=period_s))
    timings.append(time_call("infer_back_to_back", "inference in process, back to back", infer, runs=runs))
    setting = {
        "policy": name,
        "observation": rows.shape[1],
        "action": len(loaded.manifest.action),
        "samples": loaded.manifest.uncertainty.sample_count,
        "rate_hz": rate_hz,
        "runs": runs,
        "provider": runtime.provider,
        **machine(),
    }
    return timings, paced.late_share, setting


def _post(request: urllib.request.Request) -> None:
    with urllib.request.urlopen(request, timeout=5) as reply:  # noqa: S310 (as above)
        reply.read()
