"""What is asked of serving, as ratios of one run, and whether it was met."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.robots import Load
from benchmarks.timing import Timing

OVER_ECHO_AND_INFERENCE = 1.1
P99_OVER_P50 = 3.0
OVER_MLSERVER = 0.35
LATE_SHARE = 0.001
RESIDENT_MB = 300.0
READY_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One thing that is asked."""

    name: str
    found: float
    aim: float
    """At most."""

    @property
    def met(self) -> bool:
        """Whether it is."""
        return self.found <= self.aim


def verdicts(
    timings: Sequence[Timing], *, late_share: float, ready_s: float, loads: Mapping[str, Load]
) -> list[Verdict]:
    """All that can be said of these measurements; what needs a peer is left out without it."""
    p50 = {timing.key: timing.p50_us for timing in timings}
    p99 = {timing.key: timing.p99_us for timing in timings}
    control = p50["control"]
    quick, quick_sum = p50["control_back_to_back"], p50["echo_stream_back_to_back"] + p50["infer_back_to_back"]
    found = [
        Verdict(
            name="control over (echo + inference), paced",
            found=control / (p50["echo_stream"] + p50["infer"]),
            aim=OVER_ECHO_AND_INFERENCE,
        ),
        Verdict(
            name="control over (echo + inference), back to back", found=quick / quick_sum, aim=OVER_ECHO_AND_INFERENCE
        ),
        Verdict(name="control's p99 over its p50, paced", found=p99["control"] / control, aim=P99_OVER_P50),
        Verdict(
            name="control's p99 over its p50, back to back",
            found=p99["control_back_to_back"] / quick,
            aim=P99_OVER_P50,
        ),
        Verdict(name="share of ticks late", found=late_share, aim=LATE_SHARE),
        Verdict(name="seconds from start to ready", found=ready_s, aim=READY_S),
    ]
    for key, name, aim in (("openpi_ws", "openpi's wire", 1.0), ("mlserver_grpc", "MLServer's gRPC", OVER_MLSERVER)):
        for suffix, how in (("", "paced"), ("_back_to_back", "back to back")):
            if f"{key}{suffix}" in p50:
                ratio = p50[f"control{suffix}"] / p50[f"{key}{suffix}"]
                found.append(Verdict(name=f"control over {name}, {how}", found=ratio, aim=aim))
    if "control" in loads:
        resident = loads["control"].resident_end_mb
        found.append(Verdict(name="resident memory at the end, MB", found=resident, aim=RESIDENT_MB))
    return found


def show_verdicts(found: Sequence[Verdict]) -> None:
    """Print a table for people."""
    table = Table(title="what is asked", title_justify="left")
    for column in ("", "found", "at most", ""):
        table.add_column(column, justify="right" if column in ("found", "at most") else "left")
    for verdict in found:
        table.add_row(verdict.name, f"{verdict.found:.3g}", f"{verdict.aim:g}", "met" if verdict.met else "not met")
    Console().print(table)


def show_loads(loads: Mapping[str, Load], *, robots: int, rate_hz: float) -> None:
    """Print a table for people."""
    table = Table(title=f"{robots} robots at {rate_hz:g} Hz each", title_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("late [%]", "p50 [ms]", "p99 [ms]", "per core [1/s]", "MB before", "early", "end"):
        table.add_column(escape(column), justify="right")
    for key, load in loads.items():
        found = load.numbers()
        table.add_row(
            key,
            f"{100 * found['late_share']:.2f}",
            f"{found['p50_us'] / 1000:.2f}",
            f"{found['p99_us'] / 1000:.2f}",
            f"{found['requests_per_core_s']:.0f}",
            *(f"{found[f'resident_{when}_mb']:.0f}" for when in ("start", "early", "end")),
        )
    Console().print(table)
