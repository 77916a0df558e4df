"""A control session: one observation out per tick, its decision back before the deadline, or the reason why not."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from sim_bridge.channel import open_channel
from sim_bridge.clock_offset import ClockOffset
from sim_bridge.errors import RequestRefusedError, ServerUnreachableError
from sim_bridge.exchange import CLOSE_TIMEOUT_S, Exchange, Outcome, Promise, Reply
from sim_bridge.wire_errors import error_of

__all__ = ["ControlSession", "Outcome", "Promise", "Reply"]

logger = logging.getLogger(__name__)


class _Outbox(Iterator[pb.ControlRequest]):
    """The sending side of one stream: at most one observation waits, the newest wins."""

    def __init__(self, opening: pb.ControlRequest) -> None:
        self._waiting: queue.SimpleQueue[pb.ControlRequest | None] = queue.SimpleQueue()
        self._waiting.put(opening)
        self._closed = False

    def put(self, request: pb.ControlRequest | None) -> None:
        """Send this next, in place of any observation that still waits."""
        with contextlib.suppress(queue.Empty):
            self._waiting.get_nowait()
        self._waiting.put(request)

    def close(self) -> None:
        """End the stream from this side, whatever is put afterwards."""
        self._closed = True
        self.put(None)

    def __next__(self) -> pb.ControlRequest:
        request = self._waiting.get()
        if request is None or self._closed:
            raise StopIteration
        return request


class ControlSession:
    """Keeps one `Control` stream open, and opens it again with bounded backoff when it is lost.

    `decide` belongs to the control thread; a thread of the session's own receives, and reconnects while the control
    thread goes on ticking. Each attempt has a connection of its own: one that went silent is not used again. Made by
    `PolicyClient.control`.
    """

    def __init__(
        self,
        address: str,
        opening: pb.OpenSession,
        *,
        open_timeout_s: float,
        reply_timeout_s: float,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._address = address
        self._open_timeout_s = open_timeout_s
        self._exchange = Exchange(opening, address, reply_timeout_s=reply_timeout_s, now_ns=now_ns)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._answered: queue.SimpleQueue[None] = queue.SimpleQueue()
        """An item per decision that was waited for: unlike with a condition, who is woken need not wait for a lock once more."""
        self._outbox: _Outbox | None = None  # of the open stream; None while there is none
        self._call: grpc.Call | None = None
        self._hang_up_reason = ""
        self._receiver = threading.Thread(target=self._keep_open, name="policy-session", daemon=True)
        self._receiver.start()

    @property
    def connected(self) -> bool:
        """Whether a stream is open now."""
        with self._lock:
            return self._exchange.connected

    @property
    def session(self) -> str:
        """The name that the server gave to the session opened last."""
        with self._lock:
            return self._exchange.session

    @property
    def promise(self) -> Promise | None:
        """The rate and latency that the server granted, or None where none was asked for."""
        with self._lock:
            return self._exchange.promise

    @property
    def reconnects(self) -> int:
        """How often the stream was opened again after the first time."""
        with self._lock:
            return self._exchange.reconnects

    @property
    def stale_replies(self) -> int:
        """Replies dropped because they answered an older tick than the current one."""
        with self._lock:
            return self._exchange.stale_replies

    @property
    def clock_offset(self) -> ClockOffset | None:
        """The server's monotonic clock against this one, or None before the first decision."""
        with self._lock:
            return self._exchange.clock_offset.best

    def wait_until_open(self) -> None:
        """Wait until the server has confirmed the session.

        Raises:
            ServerUnreachableError: if no confirmation came in time.
            RequestRefusedError: if the server refuses the policy, the contract or the promise.
        """
        exchange = self._exchange
        with self._lock:
            self._changed.wait_for(
                lambda: exchange.connected or exchange.failure is not None, self._open_timeout_s + CLOSE_TIMEOUT_S
            )
            opened, failure = exchange.connected, exchange.failure
        if not opened:
            self.close()
            raise failure or exchange.unopened()

    def decide(
        self, *, tick: int, observation: NDArray[np.floating], deadline_ns: int, status: pb.RobotStatus | None = None
    ) -> Reply:
        """Send one observation and wait for its decision, at most until the deadline.

        Replies to older ticks are dropped. While the connection is lost the call waits out its deadline, so that a
        loop that is not paced by a clock does not race ahead.

        Args:
            tick: strictly increasing.
            observation: (S,) in the contract's order and units.
            deadline_ns: time on `time.monotonic_ns` after which the decision has no use.
            status: what happened at the previous tick, for the operator.

        Raises:
            ValueError: if the tick is not newer than the last, or the observation is not one vector.
        """
        exchange = self._exchange
        with self._lock:
            asked = exchange.ask(tick=tick, observation=observation, deadline_ns=deadline_ns, status=status)
            if self._outbox is not None:
                self._outbox.put(asked.request)
        while asked.decision is None and (remaining_s := exchange.remaining_s(asked)) > 0:
            with contextlib.suppress(queue.Empty):
                self._answered.get(timeout=remaining_s)
        with self._lock:
            reply, silence = exchange.reply(asked), exchange.silence()
        if silence:
            self._hang_up(silence)
        return reply

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

    def _hang_up(self, reason: str) -> None:
        with self._lock:
            call, self._hang_up_reason = self._call, reason
        if call is not None:
            call.cancel()

    def _keep_open(self) -> None:
        while not self._closing.is_set():
            failure = self._run_stream()
            with self._lock:
                was_open = self._exchange.connected
                if self._hang_up_reason:
                    failure = self._exchange.given_up(self._hang_up_reason)
                self._outbox = self._call = None
                backoff_s = self._exchange.lose(failure)
                self._changed.notify_all()
            if was_open and not self._closing.is_set():
                logger.warning("control session lost: %s", failure)
            self._closing.wait(backoff_s)

    def _run_stream(self) -> ServerUnreachableError | RequestRefusedError:
        """Open one stream and receive until it ends; returns why it did."""
        outbox = _Outbox(self._exchange.opening)
        with open_channel(self._address) as channel:
            # The stream outlives any deadline; opening it does not.
            call = PolicyServiceStub(channel).Control(outbox)
            open_deadline = threading.Timer(
                self._open_timeout_s, self._hang_up, ["it did not open the session in time"]
            )
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
                    elif response.WhichOneof("message") == "opened" and self._outbox is not outbox:
                        open_deadline.cancel()
                        self._accept(response.opened, outbox)
            except grpc.RpcError as error:
                return error_of(error, self._address)
            except RequestRefusedError as error:
                return error
            finally:
                open_deadline.cancel()
                outbox.close()
                call.cancel()
        return self._exchange.ended()

    def _accept(self, opened: pb.SessionOpened, outbox: _Outbox) -> None:
        with self._lock:
            self._exchange.confirm(opened)
            self._outbox = outbox
            self._changed.notify_all()

    def _receive(self, decision: pb.ControlDecision) -> None:
        with self._lock:
            answered = self._exchange.answer(decision)
        if answered:
            self._answered.put(None)
