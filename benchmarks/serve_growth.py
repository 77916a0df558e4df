"""How the latency of a control round trip grows with robots, with samples and with the policy's size."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.reference_bundle import make_reference_bundle, make_reference_bundles
from benchmarks.robots import load
from benchmarks.serve import in_turn
from benchmarks.server_process import server_process
from benchmarks.subjects import Subject, case_of, own_client, written
from benchmarks.timing import Timing, machine, summarise

REFERENCE = {"robots": 1, "samples": 32, "hidden": 256}
AXES = {"robots": (1, 2, 4, 8, 16, 32, 64), "samples": (8, 16, 32, 64, 128), "hidden": (64, 128, 256, 512, 1024)}
ENV = "Walker2d-v5"
ONE_ROBOT_HZ = 100.0
"""Rate of the one robot that asks growing policies."""


def measure(*, runs: int, rate_hz: float) -> tuple[list[Timing], dict[str, float], dict[str, Any]]:
    """Time paced round trips at every size, and inference alone where the policy changes.

    Args:
        runs: timed calls of each client at each size.
        rate_hz: of every robot where they are many.

    Returns:
        Timings keyed `axis_size_control` and `axis_size_infer`; the share of late ticks by `robots_size`; the setting.

    Raises:
        BenchmarkError: if a server or a client fails.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        bundles = _bundles(scratch, progress)
        timings, late = _robots(bundles["samples", REFERENCE["samples"]], scratch, progress, runs=runs, rate_hz=rate_hz)
        timings += _policies(bundles, scratch, progress, runs=runs)
    return (
        timings,
        late,
        {**REFERENCE, "env": ENV, "rate_hz": rate_hz, "one_robot_hz": ONE_ROBOT_HZ, "runs": runs, **machine()},
    )


def _bundles(scratch: Path, progress: Progress) -> dict[tuple[str, int], Path]:
    """By axis and size; the reference stands on both axes."""
    bar = progress.add_task("making policies", total=len(AXES["hidden"]))
    sampled = make_reference_bundles(_new(scratch / "samples"), env=ENV, samples=AXES["samples"])
    bundles = {("samples", size): path for size, path in zip(AXES["samples"], sampled, strict=True)}
    progress.advance(bar)
    for size in AXES["hidden"]:
        if size == REFERENCE["hidden"]:
            bundles["hidden", size] = bundles["samples", REFERENCE["samples"]]
        else:
            directory = _new(scratch / f"hidden-{size}")
            bundles["hidden", size] = make_reference_bundle(
                directory, env=ENV, hidden=size, samples=REFERENCE["samples"]
            )
            progress.advance(bar)
    progress.remove_task(bar)
    return bundles


def _new(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _robots(
    bundle: Path, scratch: Path, progress: Progress, *, runs: int, rate_hz: float
) -> tuple[list[Timing], dict[str, float]]:
    timings, late = [], {}
    with server_process(bundle) as server:
        path = written(case_of(bundle), scratch, "robots", server)
        for robots in progress.track(AXES["robots"], description="robots"):
            found = load(
                lambda: own_client("control", "grpc", path), server.pid, robots=robots, rate_hz=rate_hz, runs=runs
            )
            timings.append(summarise(f"robots_{robots}_control", f"robots {robots}, control", found.calls.durations_s))
            late[f"robots_{robots}"] = found.calls.late_share
    return timings, late


def _policies(bundles: Mapping[tuple[str, int], Path], scratch: Path, progress: Progress, *, runs: int) -> list[Timing]:
    subjects = []
    with ExitStack() as stack:
        for (axis, size), bundle in bundles.items():
            server = stack.enter_context(server_process(bundle))
            path = written(case_of(bundle), scratch, f"{axis}-{size}", server)
            for key, wire, kind in (("control", "control", "grpc"), ("infer", "infer", "process")):
                subjects.append(
                    Subject(
                        key=f"{axis}_{size}_{key}",
                        name=f"{axis} {size}, {key}",
                        connect=lambda wire=wire, kind=kind, path=path: own_client(wire, kind, path),  # type: ignore[misc]
                        server_pid=server.pid,
                    )
                )
        calls = in_turn(subjects, runs=runs, period_s=1 / ONE_ROBOT_HZ, left_out={}, progress=progress)
    return [summarise(subject.key, subject.name, calls[subject.key][0].durations_s) for subject in subjects]


def curves(timings: Sequence[Timing]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Size's name to `p50`, `p99` and, where the policy changes, `infer`, to (size, milliseconds) in rising order."""
    found = {timing.key: timing for timing in timings}
    by_axis: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for axis, sizes in AXES.items():
        of_control = [(size, found[f"{axis}_{size}_control"]) for size in sizes]
        by_axis[axis] = {
            "p50": [(size, timing.p50_us / 1000) for size, timing in of_control],
            "p99": [(size, timing.p99_us / 1000) for size, timing in of_control],
        }
        if axis != "robots":
            by_axis[axis]["infer"] = [(size, found[f"{axis}_{size}_infer"].p50_us / 1000) for size in sizes]
    return by_axis
