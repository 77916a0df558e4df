"""What the process in front asks its workers over private Unix sockets: metrics, robots, and to show the health of all.

One connection a question: a line of JSON, answered by lines and at last by `end`. Nothing is sent that was not asked for, so
a slow or dead reader costs a worker nothing, and what it keeps of its robots for an answer is what `Live` keeps anyway.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

from server.live import Live
from server.telemetry import Telemetry

ASK_TIMEOUT_S = 2.0
MOST_BYTES = 1 << 24
"""Of a question; the cursors of all robots of all workers are in one."""
END = "end"


class WorkerLink:
    """The worker's side."""

    def __init__(self, live: Live, telemetry: Telemetry, show_missing: Callable[[str], Awaitable[None]]) -> None:
        """`show_missing` is told what the whole server lacks; nothing, where all workers are ready."""
        self._live = live
        self._telemetry = telemetry
        self._show_missing = show_missing
        self._server: asyncio.Server | None = None

    async def start(self, path: str) -> None:
        """Answers from now on."""
        self._server = await asyncio.start_unix_server(self._connected, path, limit=MOST_BYTES)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            question = json.loads(await reader.readline())
            async for line in self._answer(question):
                writer.write(f"{line}\n".encode())
                await writer.drain()
            writer.write(END.encode())
            await writer.drain()
        except ConnectionError:
            return  # whoever asked has given up
        finally:
            writer.close()

    async def _answer(self, question: Mapping[str, object]) -> AsyncIterator[str]:
        match question:
            case {"ask": "metrics"}:
                yield self._telemetry.exposition().decode()
            case {"ask": "robots", "cursors": dict(cursors)}:
                async for session, cursor, text in self._live.robots(cursors):
                    yield json.dumps([session, cursor])
                    yield text
            case {"ask": "show", "missing": str(missing)}:
                await self._show_missing(missing)

    async def stop(self) -> None:
        """Answers no more."""
        if self._server is not None:
            self._server.close()


class WorkerClient:
    """The side of the process in front. A worker that does not answer in time is as one that has nothing to say."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def metrics(self) -> bytes | None:
        """Its metrics in Prometheus' text format, or None."""
        lines = await self._ask({"ask": "metrics"})
        return None if lines is None else "\n".join(lines).encode()

    async def robots(self, cursors: Mapping[str, int]) -> list[tuple[str, int, str]]:
        """Session, cursor and JSON text of each of its robots, with what is new since `cursors`."""
        lines = await self._ask({"ask": "robots", "cursors": dict(cursors)}) or []
        return [(*json.loads(head), text) for head, text in zip(lines[::2], lines[1::2], strict=True)]

    async def show_missing(self, missing: str) -> None:
        """Says what the whole server lacks; nothing, where all workers are ready."""
        await self._ask({"ask": "show", "missing": missing})

    async def _ask(self, question: Mapping[str, object]) -> list[str] | None:
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(self._path)
                try:
                    writer.write(f"{json.dumps(question)}\n".encode())
                    *lines, last = (await reader.read()).decode().split("\n")
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None
        return lines if last == END else None
