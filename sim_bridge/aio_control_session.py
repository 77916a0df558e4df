"""A control session for asyncio: the same laws as `ControlSession`, with `await session.decide(...)`."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from sim_bridge.channel import open_aio_channel
from sim_bridge.clock_offset import ClockOffset
from sim_bridge.errors import RequestRefusedError, ServerUnreachableError
from sim_bridge.exchange import CLOSE_TIMEOUT_S, Exchange, Promise, Reply
from sim_bridge.wire_errors import error_of

logger = logging.getLogger(__name__)


class _Outbox(AsyncIterator[pb.ControlRequest]):
    """The sending side of one stream: at most one observation waits, the newest wins."""

    def __init__(self, opening: pb.ControlRequest) -> None:
        self._changed = asyncio.Event()
        self._waiting: pb.ControlRequest | None = opening
        self._closed = False

    def put(self, request: pb.ControlRequest) -> None:
        """Send this next, in place of any observation that still waits."""
        self._waiting = request
        self._changed.set()

    def close(self) -> None:
        """End the stream from this side."""
        self._closed = True
        self._changed.set()

    async def __anext__(self) -> pb.ControlRequest:
        while self._waiting is None and not self._closed:
            self._changed.clear()
            await self._changed.wait()
        if self._closed or self._waiting is None:
            raise StopAsyncIteration
        request, self._waiting = self._waiting, None
        return request


class AsyncControlSession:
    """Keeps one `Control` stream open, and opens it again with bounded backoff when it is lost.

    An asynchronous context manager, made by `AsyncPolicyClient.control`: entering it waits until the server has
    confirmed the session, and raises ServerUnreachableError, ServerOverloadedError or RequestRefusedError otherwise.
    A task of the session's own receives and reconnects; each attempt has a connection of its own.
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
        self._closing = asyncio.Event()
        self._tried = asyncio.Event()
        self._answered: asyncio.Future[None] | None = None
        self._outbox: _Outbox | None = None  # of the open stream; None while there is none
        self._call: grpc.aio.StreamStreamCall[pb.ControlRequest, pb.ControlResponse] | None = None
        self._hang_up_reason = ""
        self._receiver: asyncio.Task[None] | None = None

    @property
    def connected(self) -> bool:
        """Whether a stream is open now."""
        return self._exchange.connected

    @property
    def session(self) -> str:
        """The name that the server gave to the session opened last."""
        return self._exchange.session

    @property
    def promise(self) -> Promise | None:
        """The rate and latency that the server granted, or None where none was asked for."""
        return self._exchange.promise

    @property
    def reconnects(self) -> int:
        """How often the stream was opened again after the first time."""
        return self._exchange.reconnects

    @property
    def stale_replies(self) -> int:
        """Replies dropped because they answered an older tick than the current one."""
        return self._exchange.stale_replies

    @property
    def clock_offset(self) -> ClockOffset | None:
        """The server's monotonic clock against this one, or None before the first decision."""
        return self._exchange.clock_offset.best

    async def decide(
        self, *, tick: int, observation: NDArray[np.floating], deadline_ns: int, status: pb.RobotStatus | None = None
    ) -> Reply:
        """Send one observation and wait for its decision, at most until the deadline.

        Replies to older ticks are dropped; where a newer tick is begun before this one is answered, this one is late.
        While the connection is lost the call waits out its deadline.

        Args:
            tick: strictly increasing.
            observation: (S,) in the contract's order and units.
            deadline_ns: time on `time.monotonic_ns` after which the decision has no use.
            status: what happened at the previous tick, for the operator.

        Raises:
            ValueError: if the tick is not newer than the last, or the observation is not one vector.
        """
        exchange = self._exchange
        asked = exchange.ask(tick=tick, observation=observation, deadline_ns=deadline_ns, status=status)
        self._answered = answered = asyncio.get_running_loop().create_future()
        if self._outbox is not None:
            self._outbox.put(asked.request)
        await asyncio.wait({answered}, timeout=max(exchange.remaining_s(asked), 0.0))
        reply, silence = exchange.reply(asked), exchange.silence()
        if silence:
            self._hang_up(silence)
        return reply

    async def close(self) -> None:
        """End the session; waits a moment for the server to confirm."""
        self._closing.set()
        receiver = self._receiver
        if receiver is None:
            return
        if self._outbox is not None:
            self._outbox.close()
            await asyncio.wait({receiver}, timeout=CLOSE_TIMEOUT_S)
        receiver.cancel()
        await asyncio.wait({receiver}, timeout=CLOSE_TIMEOUT_S)

    async def __aenter__(self) -> Self:
        self._receiver = asyncio.create_task(self._keep_open(), name="policy-session")
        try:
            await self._tried.wait()
        except asyncio.CancelledError:
            await self.close()
            raise
        if not self.connected:
            await self.close()
            raise self._exchange.failure or self._exchange.unopened()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _hang_up(self, reason: str) -> None:
        self._hang_up_reason = reason
        if self._call is not None:
            self._call.cancel()

    async def _keep_open(self) -> None:
        while not self._closing.is_set():
            failure = await self._run_stream()
            was_open = self._exchange.connected
            if self._hang_up_reason:
                failure = self._exchange.given_up(self._hang_up_reason)
            self._outbox = self._call = None
            backoff_s = self._exchange.lose(failure)
            self._tried.set()
            if was_open and not self._closing.is_set():
                logger.warning("control session lost: %s", failure)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), backoff_s)

    async def _run_stream(self) -> ServerUnreachableError | RequestRefusedError:
        """Open one stream and receive until it ends; returns why it did."""
        outbox = _Outbox(self._exchange.opening)
        self._hang_up_reason = ""
        async with open_aio_channel(self._address) as channel:
            # The stream outlives any deadline; opening it does not.
            open_deadline = asyncio.get_running_loop().call_later(
                self._open_timeout_s, self._hang_up, "it did not open the session in time"
            )
            self._call = call = PolicyServiceStub(channel).Control(outbox)
            try:
                async for response in call:
                    if response.WhichOneof("message") == "decision":
                        self._receive(response.decision)
                    elif response.WhichOneof("message") == "opened" and self._outbox is not outbox:
                        open_deadline.cancel()
                        self._exchange.confirm(response.opened)
                        self._outbox = outbox
                        self._tried.set()
            except grpc.RpcError as error:
                return error_of(error, self._address)
            except RequestRefusedError as error:
                return error
            except asyncio.CancelledError:
                # Hanging up cancels the call, not this task.
                task = asyncio.current_task()
                if not self._hang_up_reason or (task is not None and task.cancelling()):
                    raise
            finally:
                open_deadline.cancel()
                outbox.close()
                call.cancel()
        return self._exchange.ended()

    def _receive(self, decision: pb.ControlDecision) -> None:
        if self._exchange.answer(decision) and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
