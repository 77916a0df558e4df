"""A control session: one observation out per tick, its decision back before the deadline, or the reason why not."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from sim_bridge.clock_offset import ClockOffset, ClockOffsetEstimator
from sim_bridge.errors import RequestRefusedError, ServerUnreachableError
from sim_bridge.wire_errors import error_of

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 2.0
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


_OUTCOMES = {
    pb.DECISION_STATUS_OK: Outcome.OK,
    pb.DECISION_STATUS_SUPERSEDED: Outcome.SUPERSEDED,
    pb.DECISION_STATUS_EXPIRED: Outcome.EXPIRED,
    pb.DECISION_STATUS_REJECTED: Outcome.REJECTED,
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


class _Outbox(Iterator[pb.ControlRequest]):
    """The sending side of one stream: at most one observation waits, the newest wins."""

    def __init__(self, opening: pb.ControlRequest) -> None:
        self._changed = threading.Condition()
        self._waiting: pb.ControlRequest | None = opening
        self._closed = False

    def put(self, request: pb.ControlRequest) -> None:
        """Send this next, in place of any observation that still waits."""
        with self._changed:
            self._waiting = request
            self._changed.notify()

    def close(self) -> None:
        """End the stream from this side."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __next__(self) -> pb.ControlRequest:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting is not None)
            if self._closed or self._waiting is None:
                raise StopIteration
            request, self._waiting = self._waiting, None
            return request


class ControlSession:
    """Keeps one `Control` stream open, and opens it again with bounded backoff when it is lost.

    `decide` belongs to the control thread; a thread of the session's own receives, and reconnects while the control
    thread goes on ticking. Made by `PolicyClient.control`.
    """

    def __init__(
        self,
        stub: PolicyServiceStub,
        address: str,
        opening: pb.OpenSession,
        *,
        open_timeout_s: float,
        reply_timeout_s: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._stub = stub
        self._address = address
        self._opening = opening
        self._open_timeout_s = open_timeout_s
        self._reply_timeout_ns = round(reply_timeout_s * 1e9)
        self._now_ns = now_ns
        self._clock_offset = ClockOffsetEstimator()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._outbox: _Outbox | None = None  # of the open stream; None while there is none
        self._call: grpc.Call | None = None
        self._hang_up_reason = ""
        self._failure: ServerUnreachableError | RequestRefusedError | None = None
        self._opened: pb.SessionOpened | None = None
        self._sessions_opened = 0
        self._awaited_tick = 0
        self._decision: pb.ControlDecision | None = None
        self._unanswered_since_ns: int | None = None
        self._stale_replies = 0
        self._receiver = threading.Thread(target=self._keep_open, name="policy-session", daemon=True)
        self._receiver.start()

    @property
    def connected(self) -> bool:
        """Whether a stream is open now."""
        with self._lock:
            return self._outbox is not None

    @property
    def session(self) -> str:
        """The name that the server gave to the session opened last."""
        with self._lock:
            return self._opened.session if self._opened is not None else ""

    @property
    def reconnects(self) -> int:
        """How often the stream was opened again after the first time."""
        with self._lock:
            return max(self._sessions_opened - 1, 0)

    @property
    def stale_replies(self) -> int:
        """Replies dropped because they answered an older tick than the current one."""
        with self._lock:
            return self._stale_replies

    @property
    def clock_offset(self) -> ClockOffset | None:
        """The server's monotonic clock against this one, or None before the first decision."""
        return self._clock_offset.best

    def wait_until_open(self) -> None:
        """Wait until the server has confirmed the session.

        Raises:
            ServerUnreachableError: if no confirmation came in time.
            RequestRefusedError: if the server refuses the policy or the contract.
        """
        with self._lock:
            self._changed.wait_for(
                lambda: self._outbox is not None or self._failure is not None, self._open_timeout_s + CLOSE_TIMEOUT_S
            )
            opened, failure = self._outbox is not None, self._failure
        if not opened:
            self.close()
            raise failure or ServerUnreachableError(
                f"policy server at {self._address} did not open the session in time"
            )

    def decide(
        self, *, tick: int, observation: NDArray[np.floating], deadline_ns: int, status: pb.RobotStatus
    ) -> Reply:
        """Send one observation and wait for its decision, at most until the deadline.

        Replies to older ticks are dropped. While the connection is lost the call waits out its deadline, so that a
        loop that is not paced by a clock does not race ahead.

        Args:
            tick: strictly increasing.
            observation: (S,) in the contract's order and units.
            deadline_ns: monotonic time after which the decision has no use.
            status: what happened at the previous tick.
        """
        sent_ns = self._now_ns()
        message = pb.Observation(
            tick=tick,
            sent_ns=sent_ns,
            validity_ns=max(deadline_ns - sent_ns, 0),
            values=observation.tolist(),
            status=status,
        )
        with self._lock:
            self._awaited_tick = tick
            self._decision = None
            if self._outbox is not None:
                self._outbox.put(pb.ControlRequest(observation=message))
                if self._unanswered_since_ns is None:
                    self._unanswered_since_ns = sent_ns
            while self._decision is None and (remaining_ns := deadline_ns - self._now_ns()) > 0:
                self._changed.wait(remaining_ns / 1e9)
            decision = self._decision
            lost = self._failure if self._outbox is None else None
        returned_ns = self._now_ns()
        if decision is None:
            self._hang_up_if_silent(returned_ns)
            outcome, problem = self._no_decision(lost, deadline_ns - sent_ns)
        else:
            outcome = _OUTCOMES.get(decision.status, Outcome.FAILED)
            problem = "" if outcome is Outcome.OK else decision.error or f"the server answered {outcome.value}"
            self._clock_offset.add(
                sent_ns=sent_ns,
                received_ns=decision.received_ns,
                replied_ns=decision.replied_ns,
                returned_ns=returned_ns,
            )
        return Reply(outcome=outcome, problem=problem, decision=decision, round_trip_ns=returned_ns - sent_ns)

    def close(self) -> None:
        """End the session; waits a moment for the server to confirm."""
        self._closing.set()
        with self._lock:
            outbox, call = self._outbox, self._call
        if outbox is not None:
            outbox.close()
            self._receiver.join(CLOSE_TIMEOUT_S)
        if call is not None:
            call.cancel()
        self._receiver.join(CLOSE_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _no_decision(self, lost: Exception | None, budget_ns: int) -> tuple[Outcome, str]:
        if lost is not None:
            return Outcome.LOST, f"{lost}; reconnecting"
        return Outcome.LATE, f"no decision within {budget_ns / 1e6:.1f} ms"

    def _hang_up_if_silent(self, now_ns: int) -> None:
        """A peer that takes observations and never answers is as lost as one that hung up."""
        with self._lock:
            since_ns = self._unanswered_since_ns
        if since_ns is not None and now_ns - since_ns > self._reply_timeout_ns:
            self._hang_up(f"it did not reply for {(now_ns - since_ns) / 1e9:.1f} s")

    def _hang_up(self, reason: str) -> None:
        with self._lock:
            call, self._hang_up_reason = self._call, reason
        if call is not None:
            call.cancel()

    def _keep_open(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._closing.is_set():
            if self._run_stream():
                backoff_s = FIRST_BACKOFF_S
            self._closing.wait(backoff_s)
            backoff_s = min(2.0 * backoff_s, LAST_BACKOFF_S)

    def _run_stream(self) -> bool:
        """Open one stream and receive until it ends; returns whether it was ever open."""
        outbox = _Outbox(pb.ControlRequest(open=self._opening))
        opened = False
        failure: ServerUnreachableError | RequestRefusedError
        # The stream outlives any deadline; opening it does not.
        call = self._stub.Control(outbox)
        open_deadline = threading.Timer(self._open_timeout_s, self._hang_up, ["it did not open the session in time"])
        open_deadline.daemon = True
        open_deadline.start()
        with self._lock:
            self._call, self._hang_up_reason = call, ""
        if self._closing.is_set():
            call.cancel()
        try:
            for response in call:
                if response.WhichOneof("message") == "decision":
                    self._receive(response.decision)
                elif response.WhichOneof("message") == "opened" and not opened:
                    open_deadline.cancel()
                    opened = True
                    self._accept(response.opened, outbox)
            failure = ServerUnreachableError(f"policy server at {self._address} ended the session")
        except grpc.RpcError as error:
            failure = error_of(error, self._address)
        finally:
            open_deadline.cancel()
            outbox.close()
            call.cancel()
        with self._lock:
            if self._hang_up_reason:
                failure = ServerUnreachableError(
                    f"policy server at {self._address} was given up: {self._hang_up_reason}"
                )
            self._outbox = self._call = None
            self._unanswered_since_ns = None
            self._failure = failure
            self._changed.notify_all()
        if opened and not self._closing.is_set():
            logger.warning("control session lost: %s", failure)
        return opened

    def _accept(self, opened: pb.SessionOpened, outbox: _Outbox) -> None:
        with self._lock:
            self._opened = opened
            self._outbox = outbox
            self._failure = None
            self._sessions_opened += 1
            self._changed.notify_all()

    def _receive(self, decision: pb.ControlDecision) -> None:
        with self._lock:
            self._unanswered_since_ns = None
            if decision.tick == self._awaited_tick and self._decision is None:
                self._decision = decision
                self._changed.notify_all()
            else:
                self._stale_replies += 1
