"""One robot's control stream: receives observations, answers the latest, in the order of their ticks."""

import asyncio
import contextlib
import functools
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import numpy as np

from protos import policy_pb2 as pb
from protos.codec import FloatArray
from server.admission import Admission, Promise, RateMeter
from server.batcher import INLINE_BELOW_S
from server.errors import (
    ExpiredError,
    InferenceError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
)
from server.live import LiveSession
from server.native_messages import write_decision
from server.question import Clock
from server.rehearsal import WARM_S, Rehearsal
from server.runtime import Detail
from server.selection import Rule, Selection
from server.served_policy import Asking, Decision, ServedPolicy
from server.telemetry import Telemetry

INBOX_LIMIT = 64
"""Observations of one robot received and not yet answered; further ones stay in its connection."""
INT64_MAX = (1 << 63) - 1
NOTHING: FloatArray = np.empty(0, np.float32)


class SupersededError(ServingError):
    """A newer observation of the same robot had arrived; says nothing, for nothing went wrong."""

    counted_as = "superseded"


STATUSES: dict[type[ServingError], pb.DecisionStatus.ValueType] = {
    InvalidInputError: pb.DECISION_STATUS_REJECTED,
    SupersededError: pb.DECISION_STATUS_SUPERSEDED,
    ExpiredError: pb.DECISION_STATUS_EXPIRED,
    InferenceError: pb.DECISION_STATUS_FAILED,
    OverloadedError: pb.DECISION_STATUS_OVERLOADED,
}


Write = Callable[[pb.ControlResponse], Awaitable[None]]


class _Received(NamedTuple):
    observation: pb.Observation
    received_ns: int
    vector: FloatArray
    """Empty where the observation was refused."""
    promised: bool
    refusal: InvalidInputError | None

    @property
    def deadline_ns(self) -> int:
        """The clocks of robot and server cannot be compared, so the budget counts from receipt."""
        return self.received_ns + self.observation.validity_ns


class ControlSession:
    """State of one stream after its `open`.

    What can be computed on the event loop is answered where it is received, without waking another task. While something takes longer,
    observations are taken in all the same, so that only the latest need be computed.
    """

    def __init__(
        self,
        *,
        policy: ServedPolicy,
        detail: Detail,
        selection: Selection,
        promise: Promise | None,
        admission: Admission,
        live: LiveSession,
        telemetry: Telemetry,
        rehearsal: bool = False,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """`rehearsal`: whether decisions of the actor that are computed on the event loop are rehearsed."""
        self._policy = policy
        self._selection = selection
        self._meter = None if promise is None else RateMeter(promise.rate_hz)
        self._admission = admission
        self._name = policy.manifest.name
        self._version = policy.manifest.version
        self._detail = detail
        self._template = policy.templates[detail]
        self._ok = pb.ControlDecision(status=pb.DECISION_STATUS_OK, policy_version=self._version)
        self._at_once = policy.cost_s(selection) < INLINE_BELOW_S and policy.inline
        self._actor = selection.rule is Rule.ACTOR
        self._latest: _Received | None = None
        """What a rehearsal repeats."""
        self._rehearsal: Rehearsal | None = None
        if rehearsal and self._at_once and self._actor:
            busy = functools.partial(policy.batcher.busy_within, WARM_S)
            later = asyncio.get_running_loop().call_later
            self._rehearsal = Rehearsal(self._rehearse, busy=busy, later=later, clock=clock)
        self._live = live
        self._telemetry = telemetry
        self._clock = clock
        self._inbox: deque[_Received] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._answering = asyncio.Lock()
        self._last_tick = -1
        self._newest = -1
        """Tick of the newest valid observation."""
        self._end: ServingError | None = None
        self._ended = False

    async def serve(self, requests: AsyncIterator[pb.ControlRequest], write: Write) -> None:
        """Answers every observation once, in the order received, until the robot closes its side.

        Raises:
            InvalidInputError: the robot broke the protocol.
            ShuttingDownError: `close` was called.
            NotReadyError: the policy was unloaded.
        """
        batcher, promised = self._policy.batcher, self._meter is not None
        batcher.sessions += 1
        batcher.promises += promised
        receiving = asyncio.create_task(self._receive(requests, write))
        try:
            await self._answer_inbox(write)
        finally:
            if self._rehearsal is not None:
                self._rehearsal.cancel()
            batcher.sessions -= 1
            batcher.promises -= promised
            receiving.cancel()
            await asyncio.wait([receiving])
        if not receiving.cancelled():
            receiving.result()

    async def _receive(self, requests: AsyncIterator[pb.ControlRequest], write: Write) -> None:
        try:
            async for request in requests:
                received_ns = self._clock()
                if self._ended:
                    return
                if request.WhichOneof("message") != "observation":
                    self._finish(InvalidInputError("message must be an observation: the session is already open"))
                    return
                received = self._checked(request.observation, received_ns)
                if self._at_once and not self._inbox and not self._answering.locked():
                    async with self._answering:
                        await self._answer(received, write, report=True)
                    if self._rehearsal is not None and received.refusal is None:
                        self._latest = received
                        self._rehearsal.plan(received_ns)
                    continue
                self._report(request.observation)
                self._inbox.append(received)
                self._arrived.set()
                # The answer is begun before the next read is.
                await asyncio.sleep(0)
                while len(self._inbox) >= INBOX_LIMIT and not self._ended:
                    self._room.clear()
                    await self._room.wait()
        except NotReadyError as error:
            self._finish(error)
        finally:
            self._finish(None)

    def _checked(self, observation: pb.Observation, received_ns: int) -> _Received:
        vector, refusal = NOTHING, None
        try:
            self._check_times(observation)
            vector = self._policy.message_observation(observation.values)
            self._newest = observation.tick
        except InvalidInputError as error:
            refusal = error
        promised = refusal is None and self._meter is not None and self._meter.within(received_ns)
        return _Received(observation, received_ns, vector, promised, refusal)

    def _report(self, observation: pb.Observation) -> None:
        if observation.HasField("status"):
            late = self._live.report(observation.status)
            if late:
                self._telemetry.late_ticks(self._name, late)

    def _check_times(self, observation: pb.Observation) -> None:
        if observation.tick <= self._last_tick:
            raise InvalidInputError(f"tick must be greater than {self._last_tick}, got {observation.tick}")
        self._last_tick = observation.tick
        if observation.validity_ns <= 0:
            raise InvalidInputError(
                f"validity_ns must be positive, got {observation.validity_ns}; say how long the decision is of use"
            )
        if observation.sent_ns + observation.validity_ns > INT64_MAX:
            raise InvalidInputError("sent_ns + validity_ns must fit 64 bits; send nanoseconds of a monotonic clock")

    def _finish(self, reason: ServingError | None) -> None:
        if not self._ended:
            self._ended, self._end = True, reason
            self._arrived.set()
            self._room.set()

    def close(self) -> None:
        """Takes in nothing more; what was received is still answered, then `serve` raises `ShuttingDownError`."""
        self._finish(ShuttingDownError("server is shutting down"))

    async def _answer_inbox(self, write: Write) -> None:
        while True:
            while not self._inbox:
                if self._ended:
                    async with self._answering:  # what is being answered is finished first
                        if self._end is not None:
                            raise self._end
                        return
                self._arrived.clear()
                await self._arrived.wait()
            async with self._answering:
                received = self._inbox.popleft()
                self._room.set()
                await self._answer(received, write)

    async def _answer(self, received: _Received, write: Write, *, report: bool = False) -> None:
        """`report`: what the robot says of itself was not taken in yet."""
        try:
            decision = self._decided(received) or await self._decide(received)
        except NotReadyError:
            raise
        except ServingError as refusal:
            response = self._refusal(received, refusal)
            await write(response)
            if report:
                self._report(received.observation)
        else:
            response = self._response(received, decision)
            await write(response)
            # The robot has its answer; what people look at need not keep it waiting.
            if report:
                self._report(received.observation)
            self._count(received, decision, response.decision.replied_ns)

    def _decided(self, received: _Received) -> Decision | None:
        """The decision, where it need not wait: the way of most, without a coroutine of its own."""
        if received.refusal is not None:
            raise received.refusal
        if self._newest > received.observation.tick:
            raise SupersededError
        if not self._actor:
            return None
        return self._policy.decide_now(
            received.vector, self._detail, received_ns=received.received_ns, deadline_ns=received.deadline_ns
        )

    async def _decide(self, received: _Received) -> Decision:
        asking = Asking(
            received_ns=received.received_ns,
            deadline_ns=received.deadline_ns,
            client=self._live.session,
            promised=received.promised,
        )
        return await self._policy.decide(received.vector, self._detail, asking, selection=self._selection)

    def _rehearse(self) -> None:
        received = self._latest
        if received is None or self._ended:
            return
        started_ns = self._clock()
        with contextlib.suppress(ServingError):  # it is told where somebody asks
            decision = self._policy.rehearse(received.vector, self._detail)
            self._response(received, decision).SerializeToString()
        self._admission.rehearsed(self._clock() - started_ns)
        self._telemetry.rehearsed(self._name)

    def _response(self, received: _Received, decision: Decision) -> pb.ControlResponse:
        observation = received.observation
        response = pb.ControlResponse()
        answer = response.decision
        answer.CopyFrom(self._ok)
        answer.tick = observation.tick
        answer.sent_ns = observation.sent_ns
        answer.valid_until_ns = observation.sent_ns + observation.validity_ns
        answer.received_ns = received.received_ns
        answer.queue_ns = decision.queue_ns
        answer.inference_ns = decision.inference_ns
        write_decision(decision, self._template, answer.decision)
        answer.replied_ns = self._clock()
        return response

    def _count(self, received: _Received, decision: Decision, replied_ns: int) -> None:
        self._live.record(received.observation.tick, decision, received.received_ns)
        self._admission.decided(decision.own_ns)
        signals = decision.signals
        if signals is not None:
            self._telemetry.uncertainty(self._name, signals)
        self._telemetry.decided(
            self._name,
            "control",
            queue_ns=decision.queue_ns,
            inference_ns=decision.inference_ns,
            total_ns=replied_ns - received.received_ns,
        )

    def _refusal(self, received: _Received, refusal: ServingError) -> pb.ControlResponse:
        counted = refusal.counted_as
        self._telemetry.refused(self._name, "control", counted)
        if isinstance(refusal, OverloadedError):
            self._telemetry.shed(self._name, "queue")
        self._live.rejected += counted == "rejected"
        self._live.superseded += counted == "superseded"
        observation = received.observation
        replied_ns = self._clock()
        decision = pb.ControlDecision(
            tick=observation.tick,
            status=STATUSES[type(refusal)],
            error=str(refusal),
            policy_version=self._version,
            valid_until_ns=min(observation.sent_ns + max(observation.validity_ns, 0), INT64_MAX),
            sent_ns=observation.sent_ns,
            received_ns=received.received_ns,
            replied_ns=replied_ns,
            queue_ns=replied_ns - received.received_ns,
            retry_after_ms=refusal.retry_after_ms if isinstance(refusal, OverloadedError) else 0,
        )
        return pb.ControlResponse(decision=decision)
