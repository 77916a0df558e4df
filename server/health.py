"""`grpc.health.v1`: whether the server, and each of its policies, is served.

Not the servicer of grpcio-health-checking, whose watches never end, so that a server that stops waits for them in vain, and of which
those who go on watching are told nothing more once another who watched the same has left.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.errors import ShuttingDownError
from server.grpc_calls import Context, abort


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpc leaves it untyped
    """Who asks is told once, who watches is told of every change. Belongs to its event loop."""

    def __init__(self) -> None:
        self._statuses: dict[str, int] = {}
        self._changed = asyncio.Event()
        """Set with the next change, which puts another in its place."""
        self._closed = False

    def show(self, service: str, *, serving: bool) -> None:
        """Says of a policy whether it is served; the empty name is the server as a whole."""
        if not self._closed:
            statuses = health_pb2.HealthCheckResponse
            self._statuses[service] = statuses.SERVING if serving else statuses.NOT_SERVING
            self._tell()

    def close(self) -> None:
        """Says of everything, from now on, that it is not served; then ends who watches with UNAVAILABLE."""
        self._statuses = dict.fromkeys(self._statuses, health_pb2.HealthCheckResponse.NOT_SERVING)
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 - names of methods are the protocol's
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """What is so now; NOT_FOUND of what is no policy of the repository."""
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no policy is named {request.service[:64]!r}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """What is so now, and every change."""
        told = None
        while True:
            changed, closed = self._changed, self._closed
            status = self._statuses.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != told:
                yield health_pb2.HealthCheckResponse(status=status)
                told = status
            if closed:
                await abort(context, ShuttingDownError("server is shutting down"))
            await changed.wait()
