"""The robot's view of a policy server for asyncio: the same operations and names as `PolicyClient`."""

import asyncio
import weakref
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from sim_bridge.aio_control_session import AsyncControlSession
from sim_bridge.channel import open_aio_channel, unreachable_text
from sim_bridge.errors import ServerUnreachableError
from sim_bridge.messages import act_request, assess_request
from sim_bridge.wire_errors import error_of


class AsyncPolicyClient:
    """A connection to one policy server; every call has a deadline. Belongs to the running event loop.

    Args:
        address: `host:port` or `unix:PATH`.
        call_timeout_s: deadline of `describe`, `act` and `assess`, and of opening a control session, in seconds.
    """

    def __init__(self, address: str, *, call_timeout_s: float = 5.0) -> None:
        self.address = address
        self._call_timeout_s = call_timeout_s
        self._channel = open_aio_channel(address)
        self._stub = PolicyServiceStub(self._channel)
        self._sessions: weakref.WeakSet[AsyncControlSession] = weakref.WeakSet()

    async def connect(self, timeout_s: float = 5.0) -> None:
        """Wait until the server accepts connections.

        Raises:
            ServerUnreachableError: if it does not within `timeout_s` seconds.
        """
        try:
            await asyncio.wait_for(self._channel.channel_ready(), timeout_s)
        except TimeoutError:
            raise ServerUnreachableError(unreachable_text(self.address, timeout_s)) from None

    async def describe(self, policy: str = "") -> pb.DescribeResponse:
        """The contract of a loaded policy; `policy` may be empty where exactly one is loaded.

        Raises:
            ServerUnreachableError: if no answer came in time.
            RequestRefusedError: if the policy is unknown or not ready.
        """
        try:
            return await self._stub.Describe(pb.DescribeRequest(policy=policy), timeout=self._call_timeout_s)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error

    async def act(
        self,
        observation: NDArray[np.floating],
        *,
        policy: str = "",
        contract: str = "",
        detail: pb.Detail.ValueType = pb.DETAIL_SUMMARY,
        selection: pb.Selection | None = None,
    ) -> pb.ActResponse:
        """One decision for one observation; arguments and errors as of `PolicyClient.act`."""
        request = act_request(observation, policy=policy, contract=contract, detail=detail, selection=selection)
        try:
            return await self._stub.Act(request, timeout=self._call_timeout_s)
        except grpc.RpcError as error:
            raise error_of(error, self.address) from error

    async def assess(
        self,
        observation: NDArray[np.floating],
        candidates: NDArray[np.floating],
        *,
        policy: str = "",
        contract: str = "",
        detail: pb.Detail.ValueType = pb.DETAIL_SUMMARY,
    ) -> pb.AssessResponse:
        """The law of many actions, (C, A), at one observation, (S,); as `PolicyClient.assess`."""
        request = assess_request(observation, candidates, policy=policy, contract=contract, detail=detail)
        try:
            return await self._stub.Assess(request, timeout=self._call_timeout_s)
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
    ) -> AsyncControlSession:
        """A control session, opened by `async with`; arguments and errors as of `PolicyClient.control`."""
        session = AsyncControlSession(
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
        self._sessions.add(session)
        return session

    async def close(self) -> None:
        """Close the connection and every session on it."""
        for session in list(self._sessions):
            await session.close()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
