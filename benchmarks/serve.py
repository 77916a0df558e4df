"""Time of a control round trip through a real server process on loopback, beside what it is held against, in turn."""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from benchmarks.client_process import Client
from benchmarks.errors import BenchmarkError
from benchmarks.paced import Calls
from benchmarks.peers.environment import default_directory
from benchmarks.robots import Load, load
from benchmarks.server_process import server_process
from benchmarks.subjects import Subject, case_of, own_subjects, peer_subjects
from benchmarks.timing import Timing, machine, summarise
from server.bundle import load_bundle

STRETCH = 50
"""Calls of one row before the next row's turn: what the machine does meanwhile hits all alike."""
WARM_UP = 5
"""Calls at the beginning of a stretch that do not count."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found."""

    timings: list[Timing]
    """Paced under their key, back to back under the key with `_back_to_back`."""
    late_share: float
    """Share of control's ticks whose decision was not there by the end of their period, of all robots."""
    loads: dict[str, Load]
    """By key, where several robots were asked for."""
    ready_s: float
    """From starting the server to its being ready, seconds."""
    left_out: dict[str, str]
    """Peers that could not be measured, and why."""
    setting: dict[str, Any]


def measure(
    bundle: Path,
    *,
    runs: int,
    rate_hz: float,
    robots: int = 1,
    load_s: float = 10.0,
    peers: bool = False,
    peers_directory: Path | None = None,
) -> Measured:
    """Time control round trips with the full summary and all they are held against.

    Args:
        bundle: what is served.
        runs: calls of each row, paced and again back to back.
        rate_hz: of the paced ones.
        robots: where it is more than one, so many robots ask at `rate_hz` at once afterwards.
        load_s: for so many seconds.
        peers: whether peers are measured, which installs them.
        peers_directory: where their environments are kept; the user's cache where it is None.

    Raises:
        BenchmarkError: if one of this project's own servers or clients fails.
        ServingError: the bundle is refused.
    """
    case = case_of(bundle)
    left_out: dict[str, str] = {}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        server = stack.enter_context(server_process(bundle))
        subjects = own_subjects(case, server, scratch, stack)
        if peers:
            directory = peers_directory or default_directory()
            subjects += peer_subjects(
                case, server, scratch, directory, stack=stack, left_out=left_out, progress=progress
            )
        calls = in_turn(subjects, runs=runs, period_s=1 / rate_hz, left_out=left_out, progress=progress)
        loads: dict[str, Load] = {}
        if robots > 1:
            asked = [subject for subject in subjects if subject.key in calls and subject.server_pid is not None]
            for subject in progress.track(asked, description=f"{robots} robots"):
                assert subject.server_pid is not None
                try:
                    loads[subject.key] = load(
                        subject.connect,
                        subject.server_pid,
                        robots=robots,
                        rate_hz=rate_hz,
                        runs=round(load_s * rate_hz),
                    )
                except BenchmarkError as error:
                    _leave_out(subject, error, left_out)
    timings = []
    for subject in subjects:
        if subject.key in calls:
            paced, quick = calls[subject.key]
            timings.append(summarise(subject.key, f"{subject.name}, paced at {rate_hz:g} Hz", paced.durations_s))
            timings.append(summarise(f"{subject.key}_back_to_back", f"{subject.name}, back to back", quick.durations_s))
    late = loads["control"].calls if loads else calls["control"][0]
    manifest = load_bundle(bundle).manifest
    setting = {
        "policy": manifest.name,
        "observation": len(manifest.observation),
        "action": len(manifest.action),
        "samples": manifest.uncertainty.sample_count,
        "rate_hz": rate_hz,
        "runs": runs,
        "robots": robots,
        "load_s": load_s,
        **machine(),
    }
    return Measured(
        timings=timings,
        late_share=late.late_share,
        loads=loads,
        ready_s=server.ready_s,
        left_out=left_out,
        setting=setting,
    )


def in_turn(
    subjects: Sequence[Subject], *, runs: int, period_s: float, left_out: dict[str, str], progress: Progress
) -> dict[str, tuple[Calls, Calls]]:
    """Calls of every subject by its key, paced and back to back, a stretch of one after a stretch of another.

    Every second round goes the other way round, so that nobody always follows the same one.

    Raises:
        BenchmarkError: if a client of this project's own fails; a peer's is left out with its reason.
    """
    with ExitStack() as stack:
        clients: dict[str, Client] = {}
        for subject in subjects:
            clients[subject.key] = client = subject.connect()
            stack.callback(client.close)
        calls = {subject.key: (Calls(), Calls()) for subject in subjects}
        waiting = list(subjects)
        for subject in list(waiting):
            try:
                clients[subject.key].wait_until_ready()
            except BenchmarkError as error:
                _leave_out(subject, error, left_out)
                waiting.remove(subject)
        bar = progress.add_task("round trips", total=runs)
        for round_, first in enumerate(range(0, runs, STRETCH)):
            stretch = min(STRETCH, runs - first)
            for subject in waiting[:: 1 if round_ % 2 == 0 else -1]:
                try:
                    for into, period in zip(calls[subject.key], (period_s, 0.0), strict=True):
                        clients[subject.key].begin(runs=stretch, period_s=period, warm_up=WARM_UP)
                        into.add(clients[subject.key].result())
                except BenchmarkError as error:
                    _leave_out(subject, error, left_out)
                    waiting.remove(subject)
            progress.advance(bar, stretch)
        progress.remove_task(bar)
    return {subject.key: calls[subject.key] for subject in waiting}


def _leave_out(subject: Subject, error: BenchmarkError, left_out: dict[str, str]) -> None:
    if not subject.peer:
        raise BenchmarkError(f"{subject.name}: {error}") from error
    left_out[subject.key] = str(error)
