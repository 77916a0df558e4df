"""Time as the control loop sees it, so that tests can own it."""

import time
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in nanoseconds that can also be waited on."""

    def now_ns(self) -> int:
        """The time now."""

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Return at the deadline, or at once where it has passed."""


class MonotonicClock:
    """The machine's monotonic clock."""

    def now_ns(self) -> int:
        """The time now."""
        return time.monotonic_ns()

    def sleep_until_ns(self, deadline_ns: int) -> None:
        """Return at the deadline, or at once where it has passed."""
        while (remaining_ns := deadline_ns - time.monotonic_ns()) > 0:
            time.sleep(remaining_ns / 1e9)
