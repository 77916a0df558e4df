"""How far the server's monotonic clock is ahead of the robot's, with an error bound."""

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ClockOffset:
    """Server clock minus robot clock."""

    offset_ns: int
    """Best estimate."""
    error_ns: int
    """The true offset lies within this of the estimate: half the time on the wire."""


class ClockOffsetEstimator:
    """Keeps the exchange with the least time on the wire among the last `window`, as NTP's clock filter does.

    A slow start is forgotten once `window` exchanges have passed, and so is a drift of the clocks.
    """

    def __init__(self, window: int = 256) -> None:
        self._exchanges: deque[tuple[int, int]] = deque(maxlen=window)
        """Error and offset of each: made into a `ClockOffset` when somebody asks, for an answer is waited for while they are added."""

    def add(self, *, sent_ns: int, received_ns: int, replied_ns: int, returned_ns: int) -> None:
        """Add one exchange: sent and returned on the robot's clock, received and replied on the server's.

        An exchange whose time on the wire would be negative tells nothing and is left out.
        """
        on_the_wire_ns = (returned_ns - sent_ns) - (replied_ns - received_ns)
        if on_the_wire_ns < 0:
            return
        offset_ns = ((received_ns - sent_ns) + (replied_ns - returned_ns)) // 2
        self._exchanges.append(((on_the_wire_ns + 1) // 2, offset_ns))

    @property
    def best(self) -> ClockOffset | None:
        """The estimate with the smallest error bound, or None before the first exchange."""
        if not self._exchanges:
            return None
        error_ns, offset_ns = min(self._exchanges)
        return ClockOffset(offset_ns=offset_ns, error_ns=error_ns)
