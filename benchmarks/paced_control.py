"""Control round trips on the absolute grid of a control loop, and the share of ticks that came too late."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.timing import due_times_ns
from protos import policy_pb2 as pb
from sim_bridge.clock import Clock
from sim_bridge.control_loop import DecisionSource
from sim_bridge.control_session import Outcome

BUDGET_NS = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class RoundTrips:
    """What a stretch of ticks gave, without its warm-up."""

    durations_s: list[float]
    """From sending the observation to having the decision, seconds."""
    late: int
    """Ticks whose decision was not there by the end of their period."""

    @property
    def late_share(self) -> float:
        """Share of the ticks that were late, 0 to 1."""
        return self.late / len(self.durations_s)


def round_trips(
    decisions: DecisionSource,
    observations: NDArray[np.float64],
    *,
    runs: int,
    period_s: float,
    first_tick: int,
    clock: Clock,
) -> RoundTrips:
    """Ask for a decision per tick, after a tenth as many to warm up.

    Tick k is due at start + k * period; it is late where its decision is not there at start + (k + 1) * period, whether
    the round trip itself took long or an earlier tick held it up. Ticks are never left out.

    Args:
        decisions: where they come from.
        observations: (R, S), sent in turn.
        runs: ticks that count.
        period_s: of the grid; 0 for back to back, where every tick is late.
        first_tick: number of the first tick.
        clock: of the grid.

    Raises:
        BenchmarkError: if a decision does not come within a second.
    """
    warm_up, period_ns = runs // 10, round(period_s * 1e9)

    def stretch(ticks: range) -> RoundTrips:
        durations_s, late = [], 0
        due_times = due_times_ns(len(ticks), period_s=period_s, clock=clock)
        for tick, due_ns in zip(ticks, due_times, strict=True):
            reply = decisions.decide(
                tick=tick,
                observation=observations[tick % len(observations)],
                deadline_ns=clock.now_ns() + BUDGET_NS,
                status=pb.RobotStatus(guard=pb.GUARD_STATE_NOMINAL),
            )
            if reply.outcome is not Outcome.OK:
                raise BenchmarkError(f"the server gave no decision at tick {tick}: {reply.problem}")
            durations_s.append(reply.round_trip_ns / 1e9)
            late += clock.now_ns() > due_ns + period_ns
        return RoundTrips(durations_s=durations_s, late=late)

    stretch(range(first_tick, first_tick + warm_up))
    return stretch(range(first_tick + warm_up, first_tick + warm_up + runs))
