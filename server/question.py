"""What one client wants computed, and what was."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from protos.codec import FloatArray
from server.errors import ExpiredError
from server.row_layout import RowLayout
from server.runtime import Detail

Clock = Callable[[], int]
"""Monotonic nanoseconds."""


class Question(NamedTuple):
    """Rows that one client wants computed."""

    observations: FloatArray
    """(B, S), checked and finite."""
    candidates: FloatArray | None
    """(B, C, A), checked: the law of these actions. None: the policy's own action, and its law."""
    detail: Detail
    received_ns: int
    deadline_ns: int | None
    """After it nothing is computed."""
    client: str
    """Who asks: what one client has waiting holds up nobody else."""
    promised: bool
    """Within a rate that was granted, so it comes before all that was not."""

    @property
    def rows(self) -> int:
        """Rows of the graph that it takes."""
        return len(self.observations) * (1 if self.candidates is None else self.candidates.shape[1])

    def expired(self, now_ns: int) -> bool:
        """Whether it is too late to compute it."""
        return self.deadline_ns is not None and now_ns >= self.deadline_ns


class Answered(NamedTuple):
    """What was computed for one question."""

    rows: FloatArray
    """(B, width), or (B, C, width) of candidates."""
    layout: RowLayout
    """Of the rows."""
    queue_ns: int
    """From receipt to the start of inference."""
    inference_ns: int
    """Inference, of all that was joined, and the checks of its outputs."""
    own_ns: int
    """Its part of that, by rows."""

    @property
    def outputs(self) -> Mapping[str, FloatArray]:
        """Output name to (B, ...), or (B, C, ...) of candidates."""
        return self.layout.split(self.rows)


def check_unexpired(deadline_ns: int | None, now_ns: int) -> None:
    """Whether there is still time to compute.

    Raises:
        ExpiredError: the deadline has passed.
    """
    if deadline_ns is not None and now_ns >= deadline_ns:
        late_ms = (now_ns - deadline_ns) / 1e6
        raise ExpiredError(f"the observation expired {late_ms:.1f} ms before it could be computed; send a newer one")


def alike(one: Question, other: Question) -> bool:
    """Whether one run of a graph can answer both, and nobody who has a promise waits for somebody who has none."""
    if one.promised is not other.promised:
        return False
    if one.candidates is None or other.candidates is None:
        return one.detail is other.detail and one.candidates is other.candidates
    return one.detail is other.detail and one.candidates.shape[1] == other.candidates.shape[1]
