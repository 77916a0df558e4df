"""What a person sees while the robot drives: a live line on a terminal, plain lines elsewhere, a table at the end."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from protos import policy_pb2 as pb
from sim_bridge.contract_check import ContractDifference
from sim_bridge.control_loop import ControlLoop, EpisodeResult, LoopStatistics
from sim_bridge.guard import GuardState
from sim_bridge.report import DriveReport

REFRESHES_PER_SECOND = 4
SHOWN_DIFFERENCES = 20
_STYLES = {GuardState.NOMINAL: "green", GuardState.HOLD: "yellow", GuardState.STOP: "bold red"}


@contextmanager
def live_progress(console: Console, loop: ControlLoop, episodes: int) -> Iterator[None]:
    """Show a line that follows the loop, where the console is a terminal."""
    if not console.is_terminal:
        yield
        return
    with Live(
        get_renderable=lambda: progress_line(loop, episodes),
        console=console,
        refresh_per_second=REFRESHES_PER_SECOND,
        transient=True,
    ):
        yield


def progress_line(loop: ControlLoop, episodes: int) -> Text:
    """Episode, return, round trip, late ticks and guard state, now."""
    statistics = loop.statistics
    text = Text(f"episode {loop.episode + 1}/{episodes}  ", no_wrap=True, overflow="ellipsis")
    text.append(statistics.guard.value, _STYLES[statistics.guard])
    text.append(f"  return {loop.episode_return:.1f}  late {statistics.late_ticks}/{statistics.ticks}")
    text.append(f"  {round_trip_text(statistics)}  {statistics.guard_reason}")
    return text


def print_episode(console: Console, loop: ControlLoop, result: EpisodeResult, episodes: int) -> None:
    """One line per finished episode."""
    statistics = loop.statistics
    ending = ""
    if result.guard_stopped:
        ending = f"  stopped by the guard: {statistics.guard_reason}"
    elif result.interrupted:
        ending = "  interrupted"
    console.print(
        f"episode {loop.episode + 1}/{episodes}  seed {result.seed}  return {result.episode_return:.1f}  "
        f"steps {result.steps}  round trip {round_trip_text(statistics)}  "
        f"late {statistics.late_ticks}/{statistics.ticks}{ending}",
        markup=False,
        soft_wrap=True,
    )


def print_differences(console: Console, differences: Sequence[ContractDifference]) -> None:
    """Why the robot refuses to move under this policy."""
    table = Table("", "robot", "policy", title="Robot and policy disagree", title_justify="left")
    for difference in differences[:SHOWN_DIFFERENCES]:
        table.add_row(*(Text(cell) for cell in (difference.what, difference.robot, difference.policy)))
    console.print(table)
    if len(differences) > SHOWN_DIFFERENCES:
        console.print(f"and {len(differences) - SHOWN_DIFFERENCES} more")


def print_uncalibrated(console: Console, policy: str) -> None:
    """What a person must know before trusting the policy's ranges."""
    console.print(
        f"policy {policy} is not calibrated: its stated return ranges are the critics' own belief",
        markup=False,
        soft_wrap=True,
    )


def print_other_perturbations(console: Console, perturb: Sequence[str], policy: pb.DescribeResponse) -> None:
    """That what the policy says of itself was learned under other noise."""
    made = "trained and calibrated" if policy.calibrated else "trained"
    here, there = (" ".join(texts) or "nothing" for texts in (perturb, policy.perturbations))
    console.print(
        f"policy {policy.policy} was {made} under {there}, this robot is perturbed by {here}: "
        "its stated uncertainty may not hold here",
        markup=False,
        soft_wrap=True,
    )


def print_report(console: Console, report: DriveReport) -> None:
    """The table at the end."""
    trip = report.round_trip_us
    table = Table(show_header=False)
    rows = {
        "policy": f"{report.policy} {report.policy_version[:12]}" + ("" if report.calibrated else ", not calibrated"),
        "episodes": str(len(report.episodes)),
        "return (mean)": "-" if report.return_mean is None else f"{report.return_mean:.1f}",
        "ticks": f"{report.ticks} at {report.rate_hz:.1f} Hz",
        "late ticks": f"{report.late_ticks} ({report.late_share:.3%})",
        "overruns": str(report.overruns),
        "round trip p50 / p99 / max": " / ".join(
            "-" if value is None else f"{value:.0f} µs" for value in trip.values()
        ),
        "guard": f"{report.guard['hold_ticks']} ticks held, {report.guard['stops']} stops",
    }
    if report.selection is not None:
        selection = report.selection
        rows["selected"] = (
            f"another action than the actor's in {selection['share_departed']:.1%} of {selection['ticks']} decisions, "
            f"expected gain {selection['gain_mean']:.3g} (mean)"
        )
    if report.dropped_records:
        rows["records dropped"] = str(report.dropped_records)
    for name, value in rows.items():
        table.add_row(name, Text(value))
    console.print(table)


def round_trip_text(statistics: LoopStatistics) -> str:
    """Median and 99th percentile for people."""
    p50, p99 = (statistics.round_trips.percentile_ns(percent) for percent in (50, 99))
    return "-" if p50 is None or p99 is None else f"p50 {p50 / 1e3:.0f} µs p99 {p99 / 1e3:.0f} µs"
