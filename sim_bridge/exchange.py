"""One control session without its wire: which tick waits, what answered it, what was lost.

The synchronous and the asyncio session move the messages; what the messages mean is decided here, once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb
from sim_bridge.clock_offset import ClockOffsetEstimator
from sim_bridge.errors import RequestRefusedError, ServerOverloadedError, ServerUnreachableError
from sim_bridge.messages import listed

FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 0.25  # between attempts to reach a server that is away
REFUSED_BACKOFF_S = 1.0  # between attempts at a server that answers and refuses
CLOSE_TIMEOUT_S = 1.0


class Outcome(Enum):
    """How one tick's request ended."""

    OK = "ok"
    LATE = "late"
    LOST = "lost"
    SUPERSEDED = "superseded"
    EXPIRED = "expired"
    REJECTED = "rejected"
    FAILED = "failed"
    OVERLOADED = "overloaded"


_OUTCOMES = {
    pb.DECISION_STATUS_OK: Outcome.OK,
    pb.DECISION_STATUS_SUPERSEDED: Outcome.SUPERSEDED,
    pb.DECISION_STATUS_EXPIRED: Outcome.EXPIRED,
    pb.DECISION_STATUS_REJECTED: Outcome.REJECTED,
    pb.DECISION_STATUS_OVERLOADED: Outcome.OVERLOADED,
}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What came back for one tick."""

    outcome: Outcome
    """Whether a decision came, or why none did."""
    problem: str
    """The reason for people; empty when the outcome is OK."""
    decision: pb.ControlDecision | None
    """The server's answer for this tick; absent when late or lost."""
    round_trip_ns: int
    """From sending the observation to having the answer, or to giving up."""

    @property
    def retry_after_ms(self) -> int:
        """When an overloaded server wants to be asked again, milliseconds from now; 0 where it did not say."""
        return 0 if self.decision is None else self.decision.retry_after_ms


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What the server granted this session."""

    rate_hz: float
    """Observations per second."""
    latency_ms: float
    """Within which 99 of 100 are answered, milliseconds."""


@dataclass(kw_only=True)
class Asked:
    """One observation on its way, and its answer once that is there."""

    tick: int
    sent_ns: int
    deadline_ns: int
    request: pb.ControlRequest
    decision: pb.ControlDecision | None = None


class Exchange:
    """The state of one control session over all its connections. Not safe for threads: its owner holds a lock.

    Args:
        opening: what opens the session, the first time and again after every loss.
        address: of the server, for messages to people.
        reply_timeout_s: after this long without any reply a server counts as silent.
        now_ns: the robot's monotonic clock.
    """

    def __init__(
        self,
        opening: pb.OpenSession,
        address: str,
        *,
        reply_timeout_s: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.opening = pb.ControlRequest(open=opening)
        self.connected = False
        self.opened: pb.SessionOpened | None = None
        self.failure: ServerUnreachableError | RequestRefusedError | None = None
        self.reconnects = 0
        self.stale_replies = 0
        self.clock_offset = ClockOffsetEstimator()
        self._address = address
        self._reply_timeout_ns = round(reply_timeout_s * 1e9)
        self._now_ns = now_ns
        self._asked: Asked | None = None
        self._unanswered_since_ns: int | None = None
        self._backoff_s = FIRST_BACKOFF_S

    @property
    def session(self) -> str:
        """The name that the server gave to the session opened last; empty before that."""
        return "" if self.opened is None else self.opened.session

    @property
    def promise(self) -> Promise | None:
        """What the server granted, or None where nothing was asked for."""
        opened = self.opened
        if opened is None or not opened.granted_rate_hz:
            return None
        return Promise(rate_hz=opened.granted_rate_hz, latency_ms=opened.granted_latency_ms)

    def confirm(self, opened: pb.SessionOpened) -> None:
        """The server opened the session. From now on it is this policy's, and the server's clock is unknown: it may be another one.

        Raises:
            RequestRefusedError: if it did so without the promise that was asked for.
        """
        asked = self.opening.open
        if asked.rate_hz and (
            opened.granted_rate_hz < asked.rate_hz or opened.granted_latency_ms > _asked_latency_ms(asked)
        ):
            raise RequestRefusedError(
                f"policy server at {self._address} must grant {_promise_text(asked)}, got "
                f"{opened.granted_rate_hz:g} Hz within {opened.granted_latency_ms:g} ms; "
                "update the server, or open the session without rate_hz and latency_ms"
            )
        self.reconnects += self.opened is not None
        self.opened, self.connected, self.failure = opened, True, None
        asked.policy = opened.description.policy or asked.policy
        self.clock_offset = ClockOffsetEstimator()
        self._backoff_s = FIRST_BACKOFF_S

    def lose(self, failure: ServerUnreachableError | RequestRefusedError) -> float:
        """The connection ended; returns how many seconds to wait before the next attempt."""
        asked = self.opening.open
        if isinstance(failure, ServerOverloadedError) and asked.rate_hz:
            failure = ServerOverloadedError(
                f"{failure}; or lower rate_hz, now {asked.rate_hz:g}, raise latency_ms, now {_asked_latency_ms(asked):g}, "
                "or leave both out",
                retry_after_ms=failure.retry_after_ms,
            )
        was_open, self.connected, self.failure = self.connected, False, failure
        self._unanswered_since_ns = None
        if isinstance(failure, RequestRefusedError) and not was_open:
            return REFUSED_BACKOFF_S
        backoff_s, self._backoff_s = self._backoff_s, min(2.0 * self._backoff_s, LAST_BACKOFF_S)
        return backoff_s

    def ask(
        self, *, tick: int, observation: NDArray[np.floating], deadline_ns: int, status: pb.RobotStatus | None
    ) -> Asked:
        """Begin a tick: from now on only its own decision counts.

        Raises:
            ValueError: if the tick is not newer than the last, or the observation is not one vector.
        """
        if self._asked is not None and tick <= self._asked.tick:
            raise ValueError(f"tick must be greater than {self._asked.tick}, got {tick}; count on in a new episode")
        sent_ns = self._now_ns()
        observed = pb.Observation(
            tick=tick,
            sent_ns=sent_ns,
            validity_ns=max(deadline_ns - sent_ns, 1),
            values=listed(observation),
            status=status,
        )
        request = pb.ControlRequest(observation=observed)
        self._asked = Asked(tick=tick, sent_ns=sent_ns, deadline_ns=deadline_ns, request=request)
        if self.connected and self._unanswered_since_ns is None:
            self._unanswered_since_ns = sent_ns
        return self._asked

    def answer(self, decision: pb.ControlDecision) -> bool:
        """A decision arrived; returns whether it answers the tick asked last."""
        asked = self._asked
        self._unanswered_since_ns = None
        if asked is None or decision.tick != asked.tick or asked.decision is not None:
            self.stale_replies += 1
            return False
        asked.decision = decision
        self.clock_offset.add(
            sent_ns=asked.sent_ns,
            received_ns=decision.received_ns,
            replied_ns=decision.replied_ns,
            returned_ns=self._now_ns(),
        )
        return True

    def remaining_s(self, asked: Asked) -> float:
        """Seconds until the deadline of `asked`; 0 or less once it has passed."""
        return (asked.deadline_ns - self._now_ns()) / 1e9

    def reply(self, asked: Asked) -> Reply:
        """What became of `asked`, now."""
        decision = asked.decision
        if decision is not None:
            outcome = _OUTCOMES.get(decision.status, Outcome.FAILED)
            problem = "" if outcome is Outcome.OK else decision.error or f"the server answered {outcome.value}"
        elif not self.connected and self.failure is not None:
            outcome, problem = Outcome.LOST, f"{self.failure}; reconnecting"
        else:
            outcome = Outcome.LATE
            problem = f"no decision within {(asked.deadline_ns - asked.sent_ns) / 1e6:.1f} ms"
        return Reply(outcome=outcome, problem=problem, decision=decision, round_trip_ns=self._now_ns() - asked.sent_ns)

    def silence(self) -> str:
        """Why the server must be given up: it takes observations and never answers; empty while it need not."""
        if self._unanswered_since_ns is None:
            return ""
        silent_ns = self._now_ns() - self._unanswered_since_ns
        return f"it did not reply for {silent_ns / 1e9:.1f} s" if silent_ns > self._reply_timeout_ns else ""

    def given_up(self, reason: str) -> ServerUnreachableError:
        """The error for a server that this side hung up on."""
        return ServerUnreachableError(f"policy server at {self._address} was given up: {reason}")

    def unopened(self) -> ServerUnreachableError:
        """The error for a server that neither opened the session nor refused it."""
        return ServerUnreachableError(f"policy server at {self._address} did not open the session in time")

    def ended(self) -> ServerUnreachableError:
        """The error for a server that ended the session of its own accord."""
        return ServerUnreachableError(f"policy server at {self._address} ended the session")


def _asked_latency_ms(asked: pb.OpenSession) -> float:
    """Without one it is the period of the rate."""
    return asked.latency_ms or 1000 / asked.rate_hz


def _promise_text(asked: pb.OpenSession) -> str:
    return f"{asked.rate_hz:g} Hz within {_asked_latency_ms(asked):g} ms"
