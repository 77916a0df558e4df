"""Keeps the way of a decision warm: shortly before a robot is expected to ask, what it asked last is computed once more.

Between two ticks of a control loop the processor's caches fill with other things, and the first decision after such a pause takes
twice the time of one right after another. A robot's ticks can be foretold, so the slow one is made beforehand, while nothing else is to do.
"""

import asyncio
from collections.abc import Callable

from server.question import Clock

Later = Callable[[float, Callable[[], None]], asyncio.TimerHandle]
LEAD_S = 0.002
"""Before the question is expected: as late as the event loop's timers, which count milliseconds, can be sure to be early enough."""
WARM_S = 0.004
"""So long after something was computed the way is taken for warm."""
LONGEST_PERIOD_S = 1.0
"""Of a robot that is foretold."""
REGULAR = 0.2
"""Share of the period by which two in a row may differ; a robot that asks now and then is not foretold."""


class Rehearsal:
    """Of one robot.

    Args:
        rehearse: computes what was asked last, and gives it to nobody.
        busy: whether something is computed or was within `WARM_S`.
        later: calls back after so many seconds.
        clock: of the times of receipt.
    """

    def __init__(self, rehearse: Callable[[], None], *, busy: Callable[[], bool], later: Later, clock: Clock) -> None:
        self._rehearse = rehearse
        self._busy = busy
        self._later = later
        self._clock = clock
        self._received_ns: int | None = None
        self._period_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def plan(self, received_ns: int) -> None:
        """A question that came then was answered: foretells the next."""
        self.cancel()
        previous_ns, self._received_ns = self._received_ns, received_ns
        if previous_ns is None:
            return
        previous_s, self._period_s = self._period_s, (received_ns - previous_ns) / 1e9
        regular = abs(self._period_s - previous_s) <= REGULAR * previous_s
        if regular and WARM_S <= self._period_s <= LONGEST_PERIOD_S:
            since_s = (self._clock() - received_ns) / 1e9
            if (delay_s := self._period_s - since_s - LEAD_S) > 0:
                self._timer = self._later(delay_s, self._due)

    def _due(self) -> None:
        self._timer = None
        if not self._busy():
            self._rehearse()

    def cancel(self) -> None:
        """Foretells nothing more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
