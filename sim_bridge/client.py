"""The robot's view of a policy server: describe it, ask for one decision, assess actions, open a control session."""

import weakref
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from sim_bridge.channel import open_channel, unreachable_text
from sim_bridge.control_session import ControlSession
from sim_bridge.errors import ServerUnreachableError
from sim_bridge.messages import act_request, assess_request
from sim_bridge.wire_errors import error_of


class PolicyClient:
    """A connection to one policy server; every call has a deadline.

    Args:
        address: `host:port` or `unix:PATH`.
        call_timeout_s: deadline of `describe`, `act` and `assess`, and of opening a control session, in seconds.
    """

    def __init__(self, address: str, *, call_timeout_s: float = 5.0) -> None:
        self.address = address
        self._call_timeout_s = call_timeout_s
        self._channel = open_channel(address)
        self._stub = PolicyServiceStub(self._channel)
        self._sessions: weakref.WeakSet[ControlSession] = weakref.WeakSet()

    def connect(self, timeout_s: float = 5.0) -> None:
        """Wait until the server accepts connections.

        Raises:
            ServerUnreachableError: if it does not within `timeout_s` seconds.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            raise ServerUnreachableError(unreachable_text(self.address, timeout_s)) from None

    def describe(self, policy: str = "") -> pb.DescribeResponse:
        """The contract of a loaded policy; `policy` may be empty where exactly one is loaded.

        Raises:
            ServerUnreachableError: if no answer came in time.
            RequestRefusedError: if the policy is unknown or not ready.
        """
        try:
            return self._stub.Describe(pb.DescribeRequest(policy=policy), timeout=self._call_timeout_s)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error

    def act(
        self,
        observation: NDArray[np.floating],
        *,
        policy: str = "",
        contract: str = "",
        detail: pb.Detail.ValueType = pb.DETAIL_SUMMARY,
        selection: pb.Selection | None = None,
    ) -> pb.ActResponse:
        """One decision for one observation.

        Args:
            observation: (S,) in the order and units of the policy's contract.
            policy: may be empty where exactly one is loaded.
            contract: fingerprint to insist on, from `describe`.
            detail: how much uncertainty the reply carries.
            selection: how the action is picked; the actor's where not given.

        Raises:
            ServerUnreachableError: if no answer came in time.
            ServerOverloadedError: if the server has too much to do; says when to try again.
            RequestRefusedError: if the observation or the contract does not fit; the message names the channel.
        """
        request = act_request(observation, policy=policy, contract=contract, detail=detail, selection=selection)
        try:
            return self._stub.Act(request, timeout=self._call_timeout_s)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error

    def assess(
        self,
        observation: NDArray[np.floating],
        candidates: NDArray[np.floating],
        *,
        policy: str = "",
        contract: str = "",
        detail: pb.Detail.ValueType = pb.DETAIL_SUMMARY,
    ) -> pb.AssessResponse:
        """The law of the return and of its action gradient for many actions at one observation.

        Args:
            observation: (S,) in the order and units of the policy's contract.
            candidates: (C, A), one action per row, within the limits; the assessments come in their order.
            policy: may be empty where exactly one is loaded.
            contract: fingerprint to insist on, from `describe`.
            detail: summaries, or summaries and samples.

        Raises:
            ServerUnreachableError: if no answer came in time.
            ServerOverloadedError: if the server has too much to do; says when to try again.
            RequestRefusedError: if the observation, a candidate or the contract does not fit.
        """
        request = assess_request(observation, candidates, policy=policy, contract=contract, detail=detail)
        try:
            return self._stub.Assess(request, timeout=self._call_timeout_s)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error

    def control(
        self,
        *,
        policy: str = "",
        robot: str = "",
        contract: str = "",
        detail: pb.Detail.ValueType = pb.DETAIL_SUMMARY,
        selection: pb.Selection | None = None,
        rate_hz: float = 0.0,
        latency_ms: float = 0.0,
        reply_timeout_s: float = 2.0,
    ) -> ControlSession:
        """Open a control session and wait until the server has confirmed it.

        Args:
            policy: may be empty where exactly one is loaded.
            robot: a name for people.
            contract: fingerprint to insist on, from `describe`.
            detail: how much uncertainty each decision carries.
            selection: how each action is picked; the actor's where not given.
            rate_hz: the promise to ask for: that many observations per second. Without it the session gets what others leave.
            latency_ms: each of them answered within this for 99 of 100; within the period of that rate where not given.
            reply_timeout_s: after this long without any reply the connection counts as lost and is made anew.

        Raises:
            ServerUnreachableError: if no confirmation came in time.
            ServerOverloadedError: if the server does not grant the promise.
            RequestRefusedError: if the server refuses the policy, the contract or the selection.
        """
        session = ControlSession(
            self.address,
            pb.OpenSession(
                policy=policy,
                robot=robot,
                contract=contract,
                detail=detail,
                selection=selection,
                rate_hz=rate_hz,
                latency_ms=latency_ms,
            ),
            open_timeout_s=self._call_timeout_s,
            reply_timeout_s=reply_timeout_s,
        )
        session.wait_until_open()
        self._sessions.add(session)
        return session

    def close(self) -> None:
        """Close the connection and every session on it."""
        for session in list(self._sessions):
            session.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
