"""Runs on this machine, each in a process of its own."""

import os
import queue
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from benchmarks.experiments.engines import Ended, Job, Progress, Wish
from benchmarks.experiments.process import LOOK_EVERY_S, run_job


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalEngine:
    """As many processes at a time as told, each watched by a thread.

    Args:
        processes: at least 1.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._wish = Wish.GO_ON
        self._events: queue.SimpleQueue[Progress | Ended] = queue.SimpleQueue()

    @property
    def processes(self) -> int:
        """How many runs are under way at the same time."""
        return self._processes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def ask(self, wish: Wish) -> None:
        """Stop or end what is under way; the rest is not begun."""
        self._wish = wish

    def run(self, jobs: Sequence[Job]) -> Generator[Progress | Ended | None]:
        """Run all jobs. Left early, it stops those under way and waits until they have saved."""
        with ThreadPoolExecutor(self._processes, thread_name_prefix="run") as threads:
            try:
                futures = [threads.submit(self._run, job) for job in jobs]
                yield from self._tell(futures)
            except SystemExit:  # raised by a signal while waiting for an event
                self._wish = Wish.END
                raise
            finally:
                if self._wish is Wish.GO_ON:
                    self._wish = Wish.STOP

    def _tell(self, futures: Sequence[Future[None]]) -> Iterator[Progress | Ended | None]:
        while not (all(future.done() for future in futures) and self._events.empty()):
            try:
                event = self._events.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                yield None
            else:
                yield event
        for future in futures:
            future.result()

    def _run(self, job: Job) -> None:
        if self._wish is not Wish.GO_ON:
            return
        try:
            ended = run_job(job, report=self._report)
        except OSError as error:
            self._events.put(Ended(run=job.run, code=None, error=f"cannot be run: {error}"))
        else:
            self._events.put(ended)

    def _report(self, progress: Progress) -> Wish:
        self._events.put(progress)
        return self._wish
