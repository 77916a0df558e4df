"""The robot's view of a policy server: describe it, ask for one decision, open a control session."""

from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from sim_bridge.control_session import ControlSession
from sim_bridge.errors import ServerUnreachableError
from sim_bridge.wire_errors import error_of

CHANNEL_OPTIONS = (
    # A robot waits for a server that restarts: try again often, where gRPC would pause for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # A proxy meant for browsers has no place between a robot and its policy.
    ("grpc.enable_http_proxy", 0),
    # Each client has connections of its own: another client's backoff is not ours.
    ("grpc.use_local_subchannel_pool", 1),
)


class PolicyClient:
    """A connection to one policy server; every call has a deadline.

    Args:
        address: `host:port` or `unix:PATH`.
        call_timeout_s: deadline of `describe` and `act`, and of opening a control session, in seconds.
    """

    def __init__(self, address: str, *, call_timeout_s: float = 5.0) -> None:
        self.address = address
        self._call_timeout_s = call_timeout_s
        self._channel = grpc.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = PolicyServiceStub(self._channel)
        self._sessions: list[ControlSession] = []

    def connect(self, timeout_s: float = 5.0) -> None:
        """Wait until the server accepts connections.

        Raises:
            ServerUnreachableError: if it does not within `timeout_s` seconds.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            raise ServerUnreachableError(
                f"policy server must accept connections at {self.address}, got none within {timeout_s:g} s; "
                f"start it with `dst-serve BUNDLE --grpc {self.address}` or correct the address"
            ) from None

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
    ) -> pb.ActResponse:
        """One decision for one observation.

        Args:
            observation: (S,) in the order and units of the policy's contract.
            policy: may be empty where exactly one is loaded.
            contract: fingerprint to insist on, from `describe`.
            detail: how much uncertainty the reply carries.

        Raises:
            ServerUnreachableError: if no answer came in time.
            RequestRefusedError: if the observation or the contract does not fit; the message names the channel.
        """
        request = pb.ActRequest(policy=policy, contract=contract, observation=observation.tolist(), detail=detail)
        try:
            return self._stub.Act(request, timeout=self._call_timeout_s)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error

    def control(
        self,
        *,
        policy: str = "",
        robot: str = "",
        contract: str = "",
        detail: pb.Detail.ValueType = pb.DETAIL_SUMMARY,
        reply_timeout_s: float = 2.0,
    ) -> ControlSession:
        """Open a control session and wait until the server has confirmed it.

        Args:
            policy: may be empty where exactly one is loaded.
            robot: a name for people.
            contract: fingerprint to insist on, from `describe`.
            detail: how much uncertainty each decision carries.
            reply_timeout_s: after this long without any reply the connection counts as lost and is made anew.

        Raises:
            ServerUnreachableError: if no confirmation came in time.
            RequestRefusedError: if the server refuses the policy or the contract.
        """
        session = ControlSession(
            self._stub,
            self.address,
            pb.OpenSession(policy=policy, robot=robot, contract=contract, detail=detail),
            open_timeout_s=self._call_timeout_s,
            reply_timeout_s=reply_timeout_s,
        )
        session.wait_until_open()
        self._sessions.append(session)
        return session

    def close(self) -> None:
        """Close the connection and every session on it."""
        for session in self._sessions:
            session.close()
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
