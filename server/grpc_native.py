"""The native gRPC service of policy.proto, with standard health and reflection."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Never

import grpc
import grpc.aio
import numpy as np
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from protos import open_inference_pb2, open_inference_pb2_grpc, policy_pb2_grpc
from protos import policy_pb2 as pb
from server import logs
from server.admission import Promise
from server.control_session import ControlSession
from server.core import Core
from server.errors import InvalidInputError, OverloadedError, ServingError
from server.grpc_calls import Context, abort, asking_of
from server.health import Health
from server.live import Live
from server.native_messages import (
    assessments_to_proto,
    candidates_of,
    description,
    detail_of,
    selection_of,
    write_decision,
)
from server.oip.grpc_service import OpenInferenceService
from server.oip.inference_service import InferenceService
from server.question import Answered
from server.selection import Selection
from server.served_policy import Asking, Decision, ServedPolicy
from server.telemetry import Method, Telemetry

logger = logging.getLogger(__name__)

OPEN_TIMEOUT_S = 10.0
MAX_CONCURRENT_RPCS = 512
ROBOT_NAME_LIMIT = 64


class NativeService(policy_pb2_grpc.PolicyServiceServicer):
    """Describe, Act, Assess and Control over one core."""

    def __init__(self, core: Core, live: Live, telemetry: Telemetry, *, rehearsal: bool) -> None:
        self._core = core
        self._rehearsal = rehearsal
        self._live = live
        self._telemetry = telemetry
        self._sessions: set[ControlSession] = set()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        """The contract of a loaded policy."""
        try:
            return description(self._core.policy(request.policy))
        except ServingError as error:
            await abort(context, error)

    async def Act(self, request: pb.ActRequest, context: Context) -> pb.ActResponse:  # noqa: N802
        """One observation, one decision."""
        asking = asking_of(context, self._core)
        try:
            policy = self._core.policy(request.policy)
        except ServingError as error:
            await abort(context, error)
        manifest = policy.manifest
        try:
            policy.check_contract(request.contract)
            observation = policy.message_observation(request.observation)
            selection = selection_of(request.selection, policy)
            detail = detail_of(request.detail)
            decision = await policy.decide(observation, detail, asking, selection=selection)
        except ServingError as error:
            await self._refuse(context, manifest.name, "act", error)
        signals = decision.signals
        if signals is not None:
            self._telemetry.uncertainty(manifest.name, signals)
        self._count(manifest.name, "act", asking, decision)
        response = pb.ActResponse(
            policy=manifest.name,
            policy_version=manifest.version,
            queue_ns=decision.queue_ns,
            inference_ns=decision.inference_ns,
        )
        write_decision(decision, policy.templates[detail], response.decision)
        return response

    async def Assess(self, request: pb.AssessRequest, context: Context) -> pb.AssessResponse:  # noqa: N802
        """One observation, the law of every candidate action."""
        asking = asking_of(context, self._core)
        try:
            policy = self._core.policy(request.policy)
        except ServingError as error:
            await abort(context, error)
        manifest = policy.manifest
        try:
            policy.check_contract(request.contract)
            detail = detail_of(request.detail)
            observation = policy.message_observation(request.observation)
            candidates = candidates_of(request, policy)
            answered = await policy.assess(observation[np.newaxis], candidates[np.newaxis], detail, asking)
        except ServingError as error:
            await self._refuse(context, manifest.name, "assess", error)
        self._count(manifest.name, "assess", asking, answered)
        return pb.AssessResponse(
            policy=manifest.name,
            policy_version=manifest.version,
            assessments=assessments_to_proto(answered, detail),
            queue_ns=answered.queue_ns,
            inference_ns=answered.inference_ns,
        )

    def _count(self, policy: str, method: Method, asking: Asking, answer: Decision | Answered) -> None:
        self._core.admission.decided(answer.own_ns)
        self._telemetry.decided(
            policy,
            method,
            queue_ns=answer.queue_ns,
            inference_ns=answer.inference_ns,
            total_ns=self._core.clock() - asking.received_ns,
        )

    async def _refuse(self, context: Context, policy: str, method: Method, error: ServingError) -> Never:
        self._telemetry.refused(policy, method, error.counted_as)
        if isinstance(error, OverloadedError):
            self._telemetry.shed(policy, "queue")
        await abort(context, error)

    async def Control(  # type: ignore[override]  # noqa: N802 - writes its answers instead of yielding them
        self, request_iterator: AsyncIterator[pb.ControlRequest], context: Context
    ) -> None:
        """A control loop: `open` first, then observations."""
        promise = None
        try:
            opening = await _opening(request_iterator)
            policy = self._core.policy(opening.policy)
            policy.check_contract(opening.contract)
            detail, selection = detail_of(opening.detail), selection_of(opening.selection, policy)
            promise = self._promise(opening, policy, selection)
            robot = opening.robot or "robot"
            name = f"{robot}-{secrets.token_hex(4)}"
            live = self._live.open(session=name, robot=robot, policy=policy)
        except ServingError as error:
            self._release(promise)
            await abort(context, error)
        session = ControlSession(
            policy=policy,
            detail=detail,
            selection=selection,
            promise=promise,
            admission=self._core.admission,
            live=live,
            telemetry=self._telemetry,
            rehearsal=self._rehearsal,
            clock=self._core.clock,
        )
        self._sessions.add(session)
        logs.bind(session=name, robot=robot, policy=policy.manifest.name)
        self._telemetry.session_opened(policy.manifest.name)
        logger.info("session %s opened for policy %s from %s", name, policy.manifest.name, context.peer())
        try:
            opened = pb.SessionOpened(session=name, description=description(policy))
            if promise is not None:
                opened.granted_rate_hz, opened.granted_latency_ms = promise.rate_hz, promise.latency_ms
            await context.write(pb.ControlResponse(opened=opened))
            await session.serve(request_iterator, context.write)
        except ServingError as error:
            await abort(context, error)
        finally:
            self._sessions.discard(session)
            self._release(promise)
            self._live.finish(live)
            self._telemetry.session_closed(policy.manifest.name)
            logger.info("session %s closed after %d decisions", name, live.ticks)

    def _promise(self, opening: pb.OpenSession, policy: ServedPolicy, selection: Selection) -> Promise | None:
        """What the session may rely on, where it asks for that.

        Raises:
            InvalidInputError: an impossible rate or latency.
            OverloadedError: it cannot be kept.
        """
        if opening.rate_hz == 0 and opening.latency_ms == 0:
            return None
        name = policy.manifest.name
        try:
            promise = self._core.admission.grant(
                rate_hz=opening.rate_hz,
                latency_ms=opening.latency_ms,
                cost_s=policy.cost_s(selection),
                longest_s=policy.longest_s(selection),
                policy=name,
            )
        except OverloadedError:
            self._telemetry.promised(name, granted=False)
            self._telemetry.shed(name, "admission")
            raise
        self._telemetry.promised(name, granted=True)
        return promise

    def _release(self, promise: Promise | None) -> None:
        if promise is not None:
            self._core.admission.release(promise)

    def close_sessions(self) -> None:
        """Answers what each session has received, then ends it with UNAVAILABLE."""
        for session in list(self._sessions):
            session.close()


async def _opening(requests: AsyncIterator[pb.ControlRequest]) -> pb.OpenSession:
    """The first message of a stream, which must be `open`."""
    try:
        request = await asyncio.wait_for(anext(requests), OPEN_TIMEOUT_S)
    except TimeoutError as error:
        raise InvalidInputError(f"the first message must come within {OPEN_TIMEOUT_S:.0f} s; send open") from error
    except StopAsyncIteration as error:
        raise InvalidInputError("the first message must be open, got the end of the stream") from error
    if request.WhichOneof("message") != "open":
        raise InvalidInputError("the first message must be open, got an observation; open the session first")
    robot = request.open.robot
    if len(robot) > ROBOT_NAME_LIMIT or not robot.isprintable():
        raise InvalidInputError(f"robot must be at most {ROBOT_NAME_LIMIT} printable characters, got {robot[:80]!r}")
    return request.open


class NativeServer:
    """The gRPC server: the native service, the Open Inference Protocol, health overall and per policy, reflection."""

    def __init__(
        self,
        core: Core,
        live: Live,
        telemetry: Telemetry,
        open_inference: InferenceService,
        *,
        max_message_bytes: int,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        share_port: bool = False,
        rehearsal: bool = False,
    ) -> None:
        """`share_port`: whether other processes may listen on the same port; `rehearsal`: see `server.rehearsal`."""
        self._core = core
        self._service = NativeService(core, live, telemetry, rehearsal=rehearsal)
        self._models = open_inference
        self._open_inference = OpenInferenceService(open_inference, core)
        self._health = Health()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                # Two servers on one port share its robots at random.
                ("grpc.so_reuseport", int(share_port)),
                # What a client may have under way on a stream stays small, however fast it sends and whether or not it reads.
                ("grpc.http2.bdp_probe", 0),
                # A robot that lost its network is noticed within 15 s; robots may ask as often in turn.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.http2.ping_timeout_ms", 5_000),  # else a minute, whatever the line above says
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
            interceptors=interceptors,
            maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS,
        )
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._service, self._server)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self._open_inference, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        services = [
            pb.DESCRIPTOR.services_by_name["PolicyService"].full_name,
            open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            reflection.SERVICE_NAME,
        ]
        reflection.enable_server_reflection(services, self._server, _described())

    def listen(self, address: str) -> int:
        """Binds to `host:port` or `unix:PATH`; returns the port, or 1 for a Unix socket.

        Raises:
            RuntimeError: the address cannot be bound.
        """
        return self._server.add_insecure_port(address)

    async def start(self) -> None:
        """Serves, and says so to health checks; says so of policies that are loaded and unloaded later, too."""
        self.show_health()
        self._core.watchers.append(lambda _name, _policy: self.show_health())
        await self._server.start()

    def show_health(self) -> None:
        """Says of the server and of every policy of the repository whether it is served.

        None is while a part of the server is missing; the server is where one of them is.
        """
        complete = not self._core.missing()
        self._health.show("", serving=complete and bool(self._core.policies))
        for model in self._models.index("", ready=False):
            self._health.show(model.name, serving=complete and model.name in self._core.policies)

    def drain(self) -> None:
        """Turns health to NOT_SERVING; sessions and streams answer what they have received and end with UNAVAILABLE."""
        self._health.close()
        self._service.close_sessions()
        self._open_inference.close_streams()

    async def stop(self, grace_s: float) -> None:
        """Closes, after what has begun is finished or `grace_s` seconds have passed."""
        await self._server.stop(grace_s)


def _described() -> DescriptorPool:
    """Everything that reflection tells of; the Open Inference Protocol keeps its names in a pool of its own."""
    pool = DescriptorPool()
    for module in (open_inference_pb2, pb, health_pb2, reflection_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)  # type: ignore[no-untyped-call]
    return pool
