"""Timing one call many times, and saying so."""

import dataclasses
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.paced import paced_calls


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Durations of one call, repeated."""

    key: str
    """Short and stable, for scripts."""
    name: str
    """For people."""
    runs: int
    p50_us: float
    p99_us: float

    def halved(self) -> "Timing":
        """Of one, where two were timed together."""
        return dataclasses.replace(self, p50_us=self.p50_us / 2, p99_us=self.p99_us / 2)


def summarise(key: str, name: str, durations_s: Sequence[float]) -> Timing:
    """Median and 99th percentile of durations in seconds."""
    p50, p99 = np.quantile(np.asarray(durations_s), (0.5, 0.99)) * 1e6
    return Timing(key=key, name=name, runs=len(durations_s), p50_us=float(p50), p99_us=float(p99))


def time_call(key: str, name: str, call: Callable[[], object], *, runs: int, period_s: float = 0.0) -> Timing:
    """Time a call after a tenth as many warm-up runs.

    Args:
        key: for scripts.
        name: for the table.
        call: what to time.
        runs: how often.
        period_s: start one run every so many seconds, as a control loop does; 0 runs back to back.
    """
    for _ in range(max(1, runs // 10)):
        call()
    return summarise(key, name, paced_calls(call, runs=runs, period_s=period_s).durations_s)


def time_in_turn(
    calls: Mapping[tuple[str, str], Callable[[], object]],
    *,
    runs: int,
    in_a_row: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time calls, named by key and name, in turn: their ratios hold on a machine whose speed wanders.

    Args:
        calls: what to time.
        runs: how often each.
        in_a_row: runs of one before it is the next one's turn. Where it is more than one, every turn begins with a run that is not
            timed, so that what is timed finds its own numbers in the caches.
        clock: in seconds; `time.thread_time` leaves out what other processes take of the core.
    """
    durations: dict[tuple[str, str], list[float]] = {names: [] for names in calls}
    for call in calls.values():
        for _ in range(2):
            call()
    for first in range(0, runs, in_a_row):
        for names, call in calls.items():
            if in_a_row > 1:
                call()
            for _ in range(min(in_a_row, runs - first)):
                began = clock()
                call()
                durations[names].append(clock() - began)
    return [summarise(key, name, durations[key, name]) for key, name in calls]


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 (a kernel interface, read line by line)
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def show(title: str, timings: Sequence[Timing], setting: dict[str, Any], *, unit: str = "us") -> None:
    """Print a table for people."""
    console = Console()
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in (f"p50 [{unit}]", f"p99 [{unit}]", "runs"):
        table.add_column(escape(column), justify="right")
    scale = {"us": 1.0, "ms": 1e-3}[unit]
    for timing in timings:
        table.add_row(timing.name, f"{timing.p50_us * scale:.4g}", f"{timing.p99_us * scale:.4g}", str(timing.runs))
    console.print(table)
    console.print(", ".join(f"{name} {value}" for name, value in setting.items()), highlight=False)


def print_json(content: dict[str, Any]) -> None:
    """Print the machine-readable form."""
    print(json.dumps(content, indent=2))
