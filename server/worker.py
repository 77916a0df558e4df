"""One of several processes that answer gRPC on one port. `server.workers` starts it; nobody else does.

Its argument is an `Assignment`; its standard input ends when the process in front does; its standard output says `ready`, or
why it cannot start.
"""

import asyncio
import gc
import json
import logging
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from server import logs
from server.bundle import load_bundle
from server.config import ServeConfig
from server.core import Core
from server.errors import NotReadyError, ServingError
from server.oip.messages import ModelStatistics
from server.oip.statistics import statistics_to_json
from server.policy_server import PolicyServer, event_loop
from server.runtime import Runtime
from server.served_policy import ServedPolicy
from server.worker_link import FrontClient, Link, Question
from server.worker_repository import WorkerRepository

logger = logging.getLogger("server.worker")  # this module is run by name


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the process in front tells a worker."""

    index: int
    config: ServeConfig
    """With the gRPC port that all workers share."""
    socket: str
    """Path of the Unix socket on which it answers the process in front."""
    front: str
    """Path of the one on which the process in front answers it."""
    bundles: dict[str, Path]
    """What is loaded now: policy name to the directory of a bundle that stays as it is."""
    reasons: dict[str, str]
    """Of every policy of the repository, loaded or not: why it is not loaded, or why the version before still serves."""

    def load(self, bundle: Path) -> Runtime:
        """A policy to serve; raises ServingError where it is refused."""
        return Runtime(load_bundle(bundle), self.config.provider)

    def to_json(self) -> str:
        """As the worker takes it."""
        return _ASSIGNMENT.dump_json(self).decode()


_ASSIGNMENT = TypeAdapter(Assignment)


class WorkingServer:
    """One worker's server, and what it and the process in front ask one another."""

    def __init__(self, core: Core, assignment: Assignment) -> None:
        self._front = FrontClient(Path(assignment.front))
        self._repository = WorkerRepository(core, assignment.reasons, assignment.load, self._front)
        self._server = PolicyServer(core, assignment.config, worker_repository=self._repository)
        self._server.open_inference.everywhere = self._statistics
        self._socket = assignment.socket
        self._link = Link(self._answer)

    async def start(self) -> None:
        """Answers robots and the process in front."""
        await self._server.start()
        await self._link.start(self._socket)

    async def _answer(self, question: Question) -> AsyncIterator[str]:
        match question:
            case {"ask": "metrics"}:
                yield self._server.telemetry.exposition().decode()
            case {"ask": "robots", "cursors": dict(cursors)}:
                async for session, cursor, text in self._server.live.robots(cursors):
                    yield json.dumps([session, cursor])
                    yield text
            case {"ask": "show", "missing": str(missing)}:
                self._server.show_missing(missing)
            case {"ask": "statistics"}:
                yield statistics_to_json(self._server.open_inference.own_statistics())
            case {"ask": "prepare", "name": str(name), "directory": str(directory)}:
                if refusal := await self._repository.prepare(name, Path(directory)):
                    yield json.dumps(refusal)
            case {"ask": "settle", "name": str(name), "change": change, "reason": str(reason)}:
                await self._repository.settle(name, change, reason)

    async def _statistics(self) -> list[ModelStatistics]:
        found = await self._front.statistics()
        if found is None:
            raise NotReadyError("the process in front of the workers gave no statistics; try again")
        return found

    async def stop(self) -> None:
        """Drains."""
        await self._server.stop()
        await self._link.stop()


async def work(core: Core, assignment: Assignment) -> None:
    """Answers until SIGTERM, SIGINT or the end of standard input, then drains."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # An orphan would hold the port that the next server wants.
    await loop.connect_read_pipe(lambda: _Lifeline(stopped), sys.stdin)
    server = WorkingServer(core, assignment)
    await server.start()
    gc.collect()
    gc.freeze()
    _say("ready")
    await stopped.wait()
    logger.info("draining")
    await server.stop()
    logger.info("stopped")


class _Lifeline(asyncio.Protocol):
    def __init__(self, stopped: asyncio.Event) -> None:
        self._stopped = stopped

    def connection_lost(self, _error: Exception | None) -> None:
        self._stopped.set()


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def main() -> int:
    """The process."""
    assignment = _ASSIGNMENT.validate_json(sys.argv[1])
    config = assignment.config
    logs.configure(config.log_format, config.log_level, worker=str(assignment.index))
    try:
        core = Core([ServedPolicy(assignment.load(path)) for path in assignment.bundles.values()])
        with asyncio.Runner(loop_factory=event_loop()) as runner:
            runner.run(work(core, assignment))
    except ServingError as error:
        _say(json.dumps(str(error)))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
