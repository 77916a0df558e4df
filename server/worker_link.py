"""How the process in front and its workers ask one another, over private Unix sockets: metrics, robots, health, loading, statistics.

One connection a question: a line of JSON, answered by lines and at last by `end`. Nothing is sent that was not asked for, so
a slow or dead reader costs a worker nothing, and what it keeps of its robots for an answer is what `Live` keeps anyway.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

from server.oip.messages import ModelStatistics
from server.oip.statistics import statistics_from_json
from server.repository import Change

ASK_TIMEOUT_S = 2.0
LOAD_TIMEOUT_S = 60.0
"""For each step of a load: waiting for one before it, reading the bundle in front, reading it in all workers."""
SETTLE_TIMEOUT_S = 5.0
"""For serving what was read; includes answering what the version before has begun."""
MOST_BYTES = 1 << 24
"""Of a question; the cursors of all robots of all workers are in one."""
END = "end"

Question = Mapping[str, Any]


class Link:
    """Answers questions on a socket."""

    def __init__(self, answer: Callable[[Question], AsyncIterator[str]]) -> None:
        self._answer = answer
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

    async def stop(self) -> None:
        """Answers no more."""
        if self._server is not None:
            self._server.close()


async def ask(path: Path, question: Question, timeout_s: float = ASK_TIMEOUT_S) -> list[str] | None:
    """The lines that answer a question; None where no whole answer comes in time."""
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(f"{json.dumps(question)}\n".encode())
                *lines, last = (await reader.read()).decode().split("\n")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return None
    return lines if last == END else None


class WorkerClient:
    """The side of the process in front. A worker that does not answer in time is as one that has nothing to say."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def metrics(self) -> bytes | None:
        """Its metrics in Prometheus' text format, or None."""
        lines = await ask(self._path, {"ask": "metrics"})
        return None if lines is None else "\n".join(lines).encode()

    async def robots(self, cursors: Mapping[str, int]) -> list[tuple[str, int, str]]:
        """Session, cursor and JSON text of each of its robots, with what is new since `cursors`."""
        lines = await ask(self._path, {"ask": "robots", "cursors": dict(cursors)}) or []
        return [(*json.loads(head), text) for head, text in zip(lines[::2], lines[1::2], strict=True)]

    async def show_missing(self, missing: str) -> None:
        """Says what the whole server lacks; nothing, where all workers are ready."""
        await ask(self._path, {"ask": "show", "missing": missing})

    async def statistics(self) -> list[ModelStatistics] | None:
        """What its models have done, or None."""
        return _statistics(await ask(self._path, {"ask": "statistics"}))

    async def prepare(self, name: str, directory: Path) -> str:
        """Has it read a bundle that it may have to serve; returns why it does not."""
        lines = await ask(self._path, {"ask": "prepare", "name": name, "directory": str(directory)}, LOAD_TIMEOUT_S)
        return _refusal(lines, "it gave no answer")

    async def settle(self, name: str, change: Change, reason: str) -> bool:
        """Has it serve what it has read, or no policy of that name, or what it serves now; returns whether it does."""
        question = {"ask": "settle", "name": name, "change": change, "reason": reason}
        return await ask(self._path, question, SETTLE_TIMEOUT_S) is not None


class FrontClient:
    """The side of a worker."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def statistics(self) -> list[ModelStatistics] | None:
        """What the models of all processes have done, or None where it does not answer."""
        # It asks all workers in turn.
        return _statistics(await ask(self._path, {"ask": "statistics"}, 2 * ASK_TIMEOUT_S))

    async def change(self, change: Change, name: str) -> str:
        """Has all processes load or unload a policy; returns why they do not."""
        lines = await ask(self._path, {"ask": change, "name": name}, 3 * LOAD_TIMEOUT_S + 3 * SETTLE_TIMEOUT_S)
        return _refusal(lines, "the process in front of the workers gave no answer; try again")


def _statistics(lines: list[str] | None) -> list[ModelStatistics] | None:
    return None if lines is None else statistics_from_json(lines[0])


def _refusal(lines: list[str] | None, unanswered: str) -> str:
    """A line of JSON that says why; none where nothing is refused."""
    if lines is None:
        return unanswered
    return str(json.loads(lines[0])) if lines else ""
