"""HTTP on a bound socket, inside the event loop that everything else runs on."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from server.http_protocol import PatientProtocol

MAX_CONNECTIONS = 256


class _Uvicorn(uvicorn.Server):
    """Uvicorn without signal handlers: the process has its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signal handlers as they are."""
        yield


class HttpServer:
    """Serves one application; `start`, then `stop`."""

    def __init__(self, app: ASGIApp, *, grace_s: float) -> None:
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=PatientProtocol,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=int(grace_s),
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self, bound: socket.socket) -> None:
        """Returns once it answers on the socket, which it closes in the end."""
        self._serving = asyncio.create_task(self._uvicorn.serve(sockets=[bound]))
        while not self._uvicorn.started and not self._serving.done():
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Finishes the requests that were begun."""
        if self._serving is not None:
            self._uvicorn.should_exit = True
            await self._serving
