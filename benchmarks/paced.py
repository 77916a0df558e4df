"""Calls on the absolute grid of a control loop, and how many came too late.

Runs in the environments of peers too, so it needs the standard library alone.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in nanoseconds that can also be waited on."""

    def now_ns(self) -> int:
        """The time now."""

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Return at the deadline, or at once where it has passed."""


class MonotonicClock:
    """The machine's monotonic clock, one for all its processes."""

    def now_ns(self) -> int:
        """The time now."""
        return time.monotonic_ns()

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Return at the deadline, or at once where it has passed."""
        while (remaining_ns := deadline_ns - time.monotonic_ns()) > 0:
            time.sleep(remaining_ns / 1e9)


@dataclass(kw_only=True)
class Calls:
    """What calls took."""

    durations_s: list[float] = field(default_factory=list)
    late: int = 0
    """Calls that had not returned by the end of their period."""

    @property
    def late_share(self) -> float:
        """Share of the calls that were late, 0 to 1."""
        return self.late / len(self.durations_s)

    def add(self, more: "Calls") -> None:
        """Take in further calls of the same kind."""
        self.durations_s += more.durations_s
        self.late += more.late


def due_times_ns(count: int, *, period_s: float, clock: Clock, start_ns: int | None = None) -> Iterator[int]:
    """Wait for each of `count` ticks on the absolute grid start + k * period and give its due time in nanoseconds.

    As in a control loop no delay adds up: after a long tick the next ones follow at once until the grid is caught up.
    """
    first_ns, period_ns = clock.now_ns() if start_ns is None else start_ns, round(period_s * 1e9)
    for k in range(count):
        due_ns = first_ns + k * period_ns
        clock.sleep_until_ns(due_ns)
        yield due_ns


def paced_calls(
    call: Callable[[], object],
    *,
    runs: int,
    period_s: float,
    warm_up: int = 0,
    start_ns: int | None = None,
    clock: Clock | None = None,
) -> Calls:
    """Call once per tick.

    Call k is due at start + k * period; it is late where it has not returned at start + (k + 1) * period, whether it took long itself or an
    earlier one held it up. Ticks are never left out.

    Args:
        call: what to time.
        runs: calls that count.
        period_s: of the grid; 0 for back to back, where every call is late.
        warm_up: calls before them on the same grid that do not count.
        start_ns: when the grid begins, on the clock; now where it is not given.
        clock: of the grid and of the durations.
    """
    clock = clock or MonotonicClock()
    calls, period_ns = Calls(), round(period_s * 1e9)
    due_times = due_times_ns(warm_up + runs, period_s=period_s, clock=clock, start_ns=start_ns)
    for tick, due_ns in enumerate(due_times):
        began_ns = clock.now_ns()
        call()
        ended_ns = clock.now_ns()
        if tick >= warm_up:
            calls.durations_s.append((ended_ns - began_ns) / 1e9)
            calls.late += ended_ns > due_ns + period_ns
    return calls
