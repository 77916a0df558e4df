"""The native gRPC service of policy.proto, with standard health and reflection."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any, Never

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from protos import policy_pb2 as pb
from protos import policy_pb2_grpc
from protos.codec import channels_to_proto
from server.control_session import ControlSession, decision_to_proto
from server.core import Core, ServedPolicy
from server.errors import (
    ContractMismatchError,
    ExpiredError,
    InferenceError,
    InvalidInputError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
    UnknownPolicyError,
)
from server.live import Live
from server.manifest import Calibration
from server.runtime import Detail
from server.telemetry import Status, Telemetry

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
OPEN_TIMEOUT_S = 10.0
MAX_CONCURRENT_RPCS = 512
ROBOT_NAME_LIMIT = 64
STATUS_CODES: dict[type[ServingError], grpc.StatusCode] = {
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownPolicyError: grpc.StatusCode.NOT_FOUND,
    ContractMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    ExpiredError: grpc.StatusCode.DEADLINE_EXCEEDED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ShuttingDownError: grpc.StatusCode.UNAVAILABLE,
    InferenceError: grpc.StatusCode.INTERNAL,
}
REFUSALS: dict[type[ServingError], Status] = {
    InvalidInputError: "rejected",
    ContractMismatchError: "rejected",
    ExpiredError: "expired",
    OverloadedError: "overloaded",
    InferenceError: "failed",
}
DETAILS: dict[pb.Detail.ValueType, Detail] = {
    pb.DETAIL_UNSPECIFIED: Detail.SUMMARY,
    pb.DETAIL_NONE: Detail.NONE,
    pb.DETAIL_SUMMARY: Detail.SUMMARY,
    pb.DETAIL_SAMPLES: Detail.SAMPLES,
}


class NativeService(policy_pb2_grpc.PolicyServiceServicer):
    """Describe, Act and Control over one core."""

    def __init__(self, core: Core, live: Live, telemetry: Telemetry) -> None:
        self._core = core
        self._live = live
        self._telemetry = telemetry
        self._sessions: set[ControlSession] = set()

    async def Describe(self, request: pb.DescribeRequest, context: Context) -> pb.DescribeResponse:  # noqa: N802
        """The contract of a loaded policy."""
        try:
            return description(self._core.policy(request.policy))
        except ServingError as error:
            await _abort(context, error)

    async def Act(self, request: pb.ActRequest, context: Context) -> pb.ActResponse:  # noqa: N802
        """One observation, one decision."""
        received_ns = self._core.clock()
        try:
            policy = self._core.policy(request.policy)
        except ServingError as error:
            await _abort(context, error)
        manifest = policy.manifest
        try:
            policy.check_contract(request.contract)
            observation = policy.checked_observation(request.observation)
            decision = await policy.decide(
                observation,
                _detail(request.detail),
                received_ns=received_ns,
                deadline_ns=_deadline(context, received_ns),
            )
        except ServingError as error:
            self._telemetry.refused(manifest.name, "act", REFUSALS[type(error)])
            await _abort(context, error)
        self._telemetry.decided(
            manifest.name,
            "act",
            queue_ns=decision.queue_ns,
            inference_ns=decision.inference_ns,
            total_ns=self._core.clock() - received_ns,
        )
        return pb.ActResponse(
            policy=manifest.name,
            policy_version=manifest.version,
            decision=decision_to_proto(decision),
            queue_ns=decision.queue_ns,
            inference_ns=decision.inference_ns,
        )

    async def Control(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.ControlRequest], context: Context
    ) -> AsyncIterator[pb.ControlResponse]:
        """A control loop: `open` first, then observations."""
        try:
            opening = await _opening(request_iterator)
            policy = self._core.policy(opening.policy)
            policy.check_contract(opening.contract)
            detail = _detail(opening.detail)
            robot = opening.robot or "robot"
            name = f"{robot}-{secrets.token_hex(4)}"
            live = self._live.open(session=name, robot=robot, policy=policy)
        except ServingError as error:
            await _abort(context, error)
        session = ControlSession(
            policy=policy, detail=detail, live=live, telemetry=self._telemetry, clock=self._core.clock
        )
        self._sessions.add(session)
        self._telemetry.session_opened(policy.manifest.name)
        logger.info("session %s opened for policy %s from %s", name, policy.manifest.name, context.peer())
        receiving = asyncio.create_task(session.receive(request_iterator))
        try:
            yield pb.ControlResponse(opened=pb.SessionOpened(session=name, description=description(policy)))
            async for answer in session.answers():
                yield answer
        except ServingError as error:
            await _abort(context, error)
        finally:
            receiving.cancel()
            self._sessions.discard(session)
            self._live.finish(live)
            self._telemetry.session_closed(policy.manifest.name)
            logger.info("session %s closed after %d decisions", name, live.ticks)

    def close_sessions(self) -> None:
        """Answers what each session has received, then ends it with UNAVAILABLE."""
        for session in list(self._sessions):
            session.close()


def description(policy: ServedPolicy) -> pb.DescribeResponse:
    """What a robot must know of a policy before it moves."""
    manifest = policy.manifest
    return pb.DescribeResponse(
        policy=manifest.name,
        policy_version=manifest.version,
        environment=manifest.task.environment,
        perturbations=manifest.task.perturbations,
        observation=channels_to_proto(policy.observation),
        action=channels_to_proto(policy.action),
        contract=policy.fingerprint,
        control_period_s=manifest.control_period_s,
        discount=manifest.uncertainty.discount,
        return_quantile_levels=manifest.uncertainty.return_quantile_levels,
        cvar_level=manifest.uncertainty.cvar_level,
        gradient_norm_levels=manifest.uncertainty.gradient_norm_levels,
        sample_count=manifest.uncertainty.sample_count,
        observed_low=manifest.observed_range.low,
        observed_high=manifest.observed_range.high,
        execution_provider=policy.runtime.provider,
        calibrated=manifest.calibration is not None,
        return_threshold=manifest.uncertainty.return_threshold,
        observation_gradient=manifest.uncertainty.observation_gradient,
        calibration=None if manifest.calibration is None else _calibration(manifest.calibration),
    )


def _calibration(calibration: Calibration) -> pb.Calibration:
    return pb.Calibration(
        false_alarm_rate=calibration.false_alarm_rate,
        critic_disagreement_threshold=calibration.critic_disagreement_threshold,
        data_distance_threshold=calibration.data_distance_threshold,
        interval_levels=calibration.levels,
        raw_coverage=calibration.raw.coverage,
        corrected_coverage=calibration.corrected.coverage,
        test_episodes=calibration.test_episodes,
    )


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


def _detail(detail: pb.Detail.ValueType) -> Detail:
    if detail not in DETAILS:
        raise InvalidInputError(f"detail must be one of {', '.join(pb.Detail.keys())}, got {detail}")
    return DETAILS[detail]


def _deadline(context: Context, received_ns: int) -> int | None:
    remaining_s = context.time_remaining()
    return None if remaining_s is None else received_ns + int(remaining_s * 1e9)


async def _abort(context: Context, error: ServingError) -> Never:
    """Ends the call with the status of the error and its message; never with a traceback."""
    metadata = (("retry-after-ms", str(error.retry_after_ms)),) if isinstance(error, OverloadedError) else ()
    await context.abort(STATUS_CODES[type(error)], str(error), metadata)


class NativeServer:
    """The gRPC server: the native service, health overall and per policy, reflection."""

    def __init__(self, core: Core, live: Live, telemetry: Telemetry, *, max_message_bytes: int) -> None:
        self._core = core
        self._service = NativeService(core, live, telemetry)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                # Two servers on one port would share its robots at random.
                ("grpc.so_reuseport", 0),
                # A robot that lost its network is noticed within 15 s; robots may ask as often in turn.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
            maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS,
        )
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self._service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        services = [
            pb.DESCRIPTOR.services_by_name["PolicyService"].full_name,
            health.SERVICE_NAME,
            reflection.SERVICE_NAME,
        ]
        reflection.enable_server_reflection(services, self._server)

    def listen(self, address: str) -> int:
        """Binds to `host:port` or `unix:PATH`; returns the port, or 1 for a Unix socket.

        Raises:
            RuntimeError: the address cannot be bound.
        """
        return self._server.add_insecure_port(address)

    async def start(self) -> None:
        """Serves, and says so to health checks."""
        for name in self._core.policies:
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()

    async def drain(self) -> None:
        """Turns health to NOT_SERVING; sessions answer what they have received and end with UNAVAILABLE."""
        await self._health.enter_graceful_shutdown()
        self._service.close_sessions()

    async def stop(self, grace_s: float) -> None:
        """Closes, after what has begun is finished or `grace_s` seconds have passed."""
        await self._server.stop(grace_s)
