"""Many robots at once: clients in processes of their own on one grid, and what they cost the server."""

import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import psutil

from benchmarks.client_process import Client
from benchmarks.paced import Calls, MonotonicClock
from benchmarks.timing import summarise

HEAD_START_NS = 200_000_000
"""From telling the clients to their first tick."""
WARM_UP_S = 0.5
MB = 1e6


@dataclass(frozen=True, kw_only=True)
class Load:
    """What a stretch with many robots gave."""

    calls: Calls
    """Of all robots."""
    requests_per_core_s: float
    """Requests answered per second of processor time that the server took: what one core would do at most."""
    resident_start_mb: float
    """Memory of the server before the robots came."""
    resident_early_mb: float
    """After a tenth of their ticks."""
    resident_end_mb: float
    """After their last tick, all of them still connected."""

    def numbers(self) -> dict[str, float]:
        """What scripts read; latencies in microseconds, memory in megabytes."""
        timing = summarise("load", "load", self.calls.durations_s)
        return {
            "p50_us": timing.p50_us,
            "p99_us": timing.p99_us,
            "late_share": self.calls.late_share,
            "requests_per_core_s": self.requests_per_core_s,
            "resident_start_mb": self.resident_start_mb,
            "resident_early_mb": self.resident_early_mb,
            "resident_end_mb": self.resident_end_mb,
        }


def load(connect: Callable[[], Client], server_pid: int, *, robots: int, rate_hz: float, runs: int) -> Load:
    """Have `robots` clients ask `runs` times each at `rate_hz`, each from a moment of its own within the period.

    Args:
        connect: starts one more client.
        server_pid: whose processor time and memory count, with its children.
        robots: clients.
        rate_hz: of each.
        runs: ticks of each that count.

    Raises:
        BenchmarkError: if a client fails.
    """
    server = psutil.Process(server_pid)
    resident_start_mb = _resident_mb(server)
    period_ns = round(1e9 / rate_hz)
    warm_up = max(1, round(WARM_UP_S * rate_hz))
    moments = random.Random(0)  # noqa: S311 (nothing is secret)
    with ExitStack() as stack:
        clients = [_closed_with(stack, connect()) for _ in range(robots)]
        for client in clients:
            client.wait_until_ready()
        start_ns = time.monotonic_ns() + HEAD_START_NS
        began_s = _processor_s(server)
        for client in clients:
            own_start_ns = start_ns + moments.randrange(period_ns)
            client.begin(runs=runs, period_s=1 / rate_hz, warm_up=warm_up, start_ns=own_start_ns)
        MonotonicClock().sleep_until_ns(start_ns + (warm_up + runs // 10) * period_ns)
        resident_early_mb = _resident_mb(server)
        calls = Calls()
        for client in clients:
            calls.add(client.result())
        took_s = _processor_s(server) - began_s
        resident_end_mb = _resident_mb(server)
    return Load(
        calls=calls,
        requests_per_core_s=robots * (warm_up + runs) / took_s,
        resident_start_mb=resident_start_mb,
        resident_early_mb=resident_early_mb,
        resident_end_mb=resident_end_mb,
    )


def _closed_with(stack: ExitStack, client: Client) -> Client:
    stack.callback(client.close)
    return client


def _family(server: psutil.Process) -> list[psutil.Process]:
    return [server, *server.children(recursive=True)]


def _processor_s(server: psutil.Process) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in _family(server)))


def _resident_mb(server: psutil.Process) -> float:
    return sum(process.memory_info().rss for process in _family(server)) / MB
