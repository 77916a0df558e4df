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
from dataclasses import dataclass

from pydantic import TypeAdapter

from server import logs
from server.config import ServeConfig
from server.core import Core
from server.errors import ServingError
from server.policy_server import PolicyServer, event_loop, load
from server.worker_link import WorkerLink

logger = logging.getLogger("server.worker")  # this module is run by name


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What the process in front tells a worker."""

    index: int
    config: ServeConfig
    """With the gRPC port that all workers share."""
    socket: str
    """Path of the Unix socket on which it answers the process in front."""

    def to_json(self) -> str:
        """As the worker takes it."""
        return _ASSIGNMENT.dump_json(self).decode()


_ASSIGNMENT = TypeAdapter(Assignment)


async def work(core: Core, assignment: Assignment) -> None:
    """Answers until SIGTERM, SIGINT or the end of standard input, then drains."""
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    # An orphan would hold the port that the next server wants.
    await loop.connect_read_pipe(lambda: _Lifeline(stopped), sys.stdin)
    server = PolicyServer(core, assignment.config, worker=True)
    link = WorkerLink(server.live, server.telemetry, server.show_missing)
    await server.start()
    await link.start(assignment.socket)
    gc.collect()
    gc.freeze()
    _say("ready")
    await stopped.wait()
    logger.info("draining")
    await server.stop()
    await link.stop()
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
        with asyncio.Runner(loop_factory=event_loop()) as runner:
            runner.run(work(load(config), assignment))
    except ServingError as error:
        _say(json.dumps(str(error)))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
