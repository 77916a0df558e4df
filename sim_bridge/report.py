"""The outcome of a run in numbers, as `--report` writes it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sim_bridge.control_loop import EpisodeResult, LoopStatistics


@dataclass(frozen=True, kw_only=True)
class DriveReport:
    """A run in numbers; the field names are the keys of the JSON file."""

    episodes: list[dict[str, float]]
    """Per episode: seed, return, steps, guard_stops (0 or 1); an interrupted one included."""
    return_mean: float | None
    """Mean return over the episodes that were not interrupted; null without any."""
    ticks: int
    """Control ticks over all episodes."""
    late_ticks: int
    """Ticks whose decision was not there within its budget."""
    late_share: float
    """late_ticks / ticks; 0 without ticks."""
    overruns: int
    """Ticks that were still at work, or left out, when the next was due (realtime only)."""
    round_trip_us: dict[str, float | None]
    """p50, p99, max of the answered ticks, microseconds; null without any."""
    rate_hz: float
    """Ticks per second of driving."""
    guard: dict[str, int]
    """hold_ticks, stops."""
    policy: str
    """Policy that drove."""
    policy_version: str
    """Its version when the run began."""
    calibrated: bool
    """Whether its stated ranges were compared with realised returns."""
    selection: dict[str, float] | None
    """How actions were picked from candidates: ticks where that was so, share_departed from the actor's action,
    gain_mean in units of the return; null where the actor's action was taken."""
    dropped_records: int
    """Messages that are not in the record."""
    stale_replies: int
    """Replies that came after their tick and were dropped."""
    reconnects: int
    """How often the connection was lost and made again."""


def drive_report(
    *,
    episodes: Sequence[EpisodeResult],
    statistics: LoopStatistics,
    policy: str,
    policy_version: str,
    calibrated: bool,
    dropped_records: int,
    stale_replies: int,
    reconnects: int,
) -> DriveReport:
    """The report of a run, whole or cut short."""
    whole = [episode.episode_return for episode in episodes if not episode.interrupted]
    trips = statistics.round_trips
    selected = statistics.selected_ticks
    nanoseconds = {
        "p50": trips.percentile_ns(50),
        "p99": trips.percentile_ns(99),
        "max": float(trips.max_ns) if trips.count else None,
    }
    return DriveReport(
        episodes=[
            {
                "seed": episode.seed,
                "return": episode.episode_return,
                "steps": episode.steps,
                "guard_stops": int(episode.guard_stopped),
            }
            for episode in episodes
        ],
        return_mean=sum(whole) / len(whole) if whole else None,
        ticks=statistics.ticks,
        late_ticks=statistics.late_ticks,
        late_share=statistics.late_ticks / statistics.ticks if statistics.ticks else 0.0,
        overruns=statistics.overruns,
        round_trip_us={name: None if value is None else round(value / 1e3, 1) for name, value in nanoseconds.items()},
        rate_hz=statistics.ticks / (statistics.running_ns / 1e9) if statistics.running_ns else 0.0,
        guard={"hold_ticks": statistics.hold_ticks, "stops": statistics.stops},
        policy=policy,
        policy_version=policy_version,
        calibrated=calibrated,
        selection={
            "ticks": selected,
            "share_departed": statistics.departed_ticks / selected,
            "gain_mean": statistics.gain_sum / selected,
        }
        if selected
        else None,
        dropped_records=dropped_records,
        stale_replies=stale_replies,
        reconnects=reconnects,
    )


def write_report(report: DriveReport, path: Path) -> None:
    """Write the report as JSON.

    Raises:
        OSError: if the file cannot be written.
    """
    path.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
