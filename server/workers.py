"""Keeps several processes answering gRPC on one port: starts them, starts them again when they die, stops them."""

import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from server.config import ServeConfig
from server.errors import ServingError
from server.merged_metrics import MergedMetrics
from server.oip.messages import ModelStatistics
from server.oip.statistics import summed
from server.repository import Change
from server.worker import Assignment
from server.worker_link import SETTLE_TIMEOUT_S, WorkerClient

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 120.0
MOST_DEATHS = 5
"""Deaths of one worker, each within `SETTLED_S` of its start, after which the server gives up."""
SETTLED_S = 30.0
FIRST_PAUSE_S = 0.1
"""Before a worker is started again; doubled with every death."""


class WorkersError(ServingError):
    """The workers cannot be kept alive."""


class Worker:
    """One process as the process in front knows it."""

    def __init__(self, index: int, process: asyncio.subprocess.Process, client: WorkerClient) -> None:
        self.index = index
        self.process = process
        self.client = client
        self.metrics = b""
        """As last read."""
        self.statistics: list[ModelStatistics] = []
        """As last read, of what is loaded now."""


class Workers:
    """`config.workers` processes; `start`, then `stop`."""

    def __init__(self, config: ServeConfig, directory: Path, bundles: Mapping[str, Path], front: Path) -> None:
        """Serve what is loaded at first.

        Args:
            config: names the port that the workers share.
            directory: where their sockets lie, private to this user.
            bundles: name of each policy to the directory of a bundle that stays as it is.
            front: the socket on which the process in front answers them.
        """
        self._config = config
        self._directory = directory
        self._bundles = dict(bundles)
        self._reasons = dict.fromkeys(bundles, "")
        self._front = front
        self.changing = asyncio.Lock()
        """Held while policies are loaded or unloaded, which begins only while no worker is `missing`: then none can miss it."""
        self._ready: dict[int, Worker] = {}
        self._processes: set[asyncio.subprocess.Process] = set()
        self._ended = MergedMetrics()
        self._ended_statistics: list[ModelStatistics] = []
        self._supervising: list[asyncio.Task[None]] = []
        self._complete = asyncio.Event()
        self._telling = asyncio.Lock()
        self._stopping = False
        self.restarts = 0
        self.failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        """Raises WorkersError once the server must give up."""

    @property
    def ready(self) -> int:
        """How many answer robots."""
        return len(self._ready)

    @property
    def missing(self) -> str:
        """What is missing; nothing, where all workers are ready."""
        wanted = self._config.workers
        return "" if self.ready == wanted else f"{self.ready} of {wanted} workers are ready"

    async def start(self) -> None:
        """Returns once all are ready.

        Raises:
            WorkersError: they cannot be.
        """
        self._supervising = [asyncio.create_task(self._supervise(index)) for index in range(self._config.workers)]
        for supervising in self._supervising:
            supervising.add_done_callback(self._check)
        complete: asyncio.Future[Any] = asyncio.ensure_future(self._complete.wait())
        await asyncio.wait([complete, self.failed], return_when=asyncio.FIRST_COMPLETED)
        complete.cancel()
        if self.failed.done():
            self.failed.result()

    async def _supervise(self, index: int) -> None:
        deaths = 0
        while not self._stopping:
            started = time.monotonic()
            reason = await self._live(index)
            if self._stopping or self.failed.done():
                return
            deaths = 1 if time.monotonic() - started > SETTLED_S else deaths + 1
            if deaths >= MOST_DEATHS:
                self._give_up(f"worker {index} died {deaths} times soon after its start, at last because {reason}")
                return
            logger.error("worker %d ended: %s; starting it again", index, reason)
            self.restarts += 1
            await asyncio.sleep(FIRST_PAUSE_S * 2 ** (deaths - 1))

    def _check(self, supervising: "asyncio.Task[None]") -> None:
        """Lets no fault of a supervisor pass unseen: the server ends by it."""
        if not supervising.cancelled() and (fault := supervising.exception()) and not self.failed.done():
            self.failed.set_exception(fault)

    def _give_up(self, message: str) -> None:
        if not self.failed.done():
            self.failed.set_exception(WorkersError(message))

    async def _live(self, index: int) -> str:
        """Lives through one worker's life; returns why it ended."""
        socket = self._directory / f"{index}.sock"
        socket.unlink(missing_ok=True)
        async with self.changing:
            assignment = Assignment(
                index=index,
                config=self._config,
                socket=str(socket),
                front=str(self._front),
                bundles=dict(self._bundles),
                reasons=dict(self._reasons),
            )
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "server.worker",
            assignment.to_json(),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Ctrl-C in a terminal reaches the process in front alone, which then stops all in order.
            start_new_session=True,
        )
        self._processes.add(process)
        if self._stopping:
            _signal(process.kill)
        worker = Worker(index, process, WorkerClient(socket))
        refusal = ""
        try:
            said = await self._first_words(worker)
            if said == "ready":
                self._ready[index] = worker
                logger.info("worker %d is ready, process %d", index, process.pid)
                await self._changed()
            elif said:
                refusal = json.loads(said)
            code = await process.wait()
        finally:
            self._processes.discard(process)
            if self._ready.pop(index, None) is not None:
                self._ended.end(worker.metrics)
                self._ended_statistics = list(summed([*self._ended_statistics, *worker.statistics]).values())
        if not self._stopping:
            await self._changed()
        if refusal and not self._complete.is_set():
            # What one refuses at the first start all refuse, at every start.
            self._give_up(refusal)
        return refusal or (f"signal {-code} ended it" if code < 0 else f"it exited with code {code}")

    async def _first_words(self, worker: Worker) -> str:
        """What a new process says of itself; nothing where it dies or takes too long."""
        assert worker.process.stdout is not None
        try:
            said = await asyncio.wait_for(worker.process.stdout.readline(), START_TIMEOUT_S)
        except TimeoutError:
            logger.error("worker %d was not ready within %.0f s", worker.index, START_TIMEOUT_S)  # noqa: TRY400
            _signal(worker.process.kill)
            return ""
        return said.decode().strip()

    async def _changed(self) -> None:
        async with self._telling:
            missing = self.missing
            await asyncio.gather(*(worker.client.show_missing(missing) for worker in self._ready.values()))
            if not missing:
                self._complete.set()

    async def robots(self, cursors: Mapping[str, int]) -> AsyncIterator[tuple[str, int, str]]:
        """Session, cursor and JSON text of every robot of every worker; a worker that does not answer has none."""
        for found in await asyncio.gather(*(worker.client.robots(cursors) for worker in self._ready.values())):
            for robot in found:
                yield robot

    async def exposition(self, own: bytes) -> bytes:
        """The metrics of all workers, past and present, and of the process in front."""
        workers = list(self._ready.values())
        for worker, text in zip(workers, await asyncio.gather(*(w.client.metrics() for w in workers)), strict=True):
            # One that is busy counts with what it had; without it counters would fall.
            worker.metrics = text or worker.metrics
        return self._ended.exposition([own, *(worker.metrics for worker in self._ready.values())])

    async def statistics(self) -> list[ModelStatistics]:
        """What the models of all workers, past and present, have done since they were loaded."""
        workers = list(self._ready.values())
        for worker, found in zip(workers, await asyncio.gather(*(w.client.statistics() for w in workers)), strict=True):
            worker.statistics = worker.statistics if found is None else found
        return [*self._ended_statistics, *(model for worker in self._ready.values() for model in worker.statistics)]

    async def prepare(self, name: str, directory: Path) -> str:
        """Has all read a bundle; returns which do not, and why."""
        workers = list(self._ready.values())
        refusals = await asyncio.gather(*(worker.client.prepare(name, directory) for worker in workers))
        return "; ".join(
            f"worker {worker.index}: {refusal}" for worker, refusal in zip(workers, refusals, strict=True) if refusal
        )

    async def settle(self, name: str, change: Change, reason: str, bundle: Path | None) -> None:
        """Has all, and those that are started later, serve what they have read, which is `bundle`; or what `change` says."""
        self._reasons[name] = reason
        if change != "keep":
            self._bundles.pop(name, None)
            self._forget_statistics(name)
        if bundle is not None:
            self._bundles[name] = bundle
        workers = list(self._ready.values())
        followed = await asyncio.gather(*(worker.client.settle(name, change, reason) for worker in workers))
        for worker in [worker for worker, follows in zip(workers, followed, strict=True) if not follows]:
            logger.error("worker %d did not follow within %.0f s and is ended", worker.index, SETTLE_TIMEOUT_S)
            _signal(worker.process.kill)
            await worker.process.wait()

    def _forget_statistics(self, name: str) -> None:
        self._ended_statistics = [model for model in self._ended_statistics if model.name != name]
        for worker in self._ready.values():
            worker.statistics = [model for model in worker.statistics if model.name != name]

    async def stop(self, grace_s: float) -> None:
        """Tells all to drain; kills those that have not ended after `grace_s` seconds."""
        self._stopping = True
        for process in self._processes:
            _signal(process.terminate)
        ends: list[Coroutine[Any, Any, int]] = [process.wait() for process in self._processes]
        if ends:
            _, late = await asyncio.wait(list(map(asyncio.ensure_future, ends)), timeout=grace_s)
            if late:
                logger.error("%d workers did not drain within %.0f s and are killed", len(late), grace_s)
        for process in self._processes:
            _signal(process.kill)
        if self._supervising:
            await asyncio.wait(self._supervising)
        if self.failed.done():
            self.failed.exception()  # whoever waited for it has it


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except ProcessLookupError:
        return
