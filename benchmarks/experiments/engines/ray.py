"""Runs on a Ray cluster, or on a local one started for them.

Every node must have this project installed. No disk needs to be shared: a run's files travel to the node that computes it and back, its
checkpoint too, so that an interrupted run goes on wherever it is put next.
"""

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast

from benchmarks.experiments.engines import Ended, Job, Progress, Wish
from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.process import LOOK_EVERY_S, run_job

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
try:
    import ray
    from ray.actor import ActorHandle
except ImportError as absent:
    raise ExperimentError(
        "--engine ray needs Ray, which is not installed: pip install 'dst-policy-server[ray]', or use --engine local"
    ) from absent

OBJECT_STORE_BYTES: Final = 128 * 1024**2
CONNECT_S: Final = 10.0
Files = dict[str, bytes]


class Board:
    """An actor between this process and the runs: they leave their progress and take what is asked of them."""

    def __init__(self) -> None:
        self._wish = Wish.GO_ON
        self._progress: list[Progress] = []

    def report(self, progress: Progress) -> Wish:
        """For runs."""
        self._progress.append(progress)
        return self._wish

    def ask(self, wish: Wish) -> None:
        """For the engine."""
        self._wish = wish

    def take(self) -> list[Progress]:
        """What was reported since the last time."""
        taken, self._progress = self._progress, []
        return taken


def compute(job: Job, files: Files, board: ActorHandle[Board]) -> tuple[Ended, Files]:
    """On a node: run a job that goes on from these files; returns how it ended and the files it leaves."""
    with tempfile.TemporaryDirectory(prefix="dst-experiment-") as directory:
        here = Job(run=job.run, arguments=job.arguments, directory=Path(directory) / "run")
        write_files(here.directory, files)
        ended = run_job(here, report=lambda progress: cast(Wish, ray.get(board.report.remote(progress))))
        return ended, read_files(here.directory)


def read_files(directory: Path) -> Files:
    """The plain files of a directory, without what lies deeper: configuration, checkpoint, numbers, log."""
    if not directory.exists():
        return {}
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def write_files(directory: Path, files: Files) -> None:
    """The other way round; each file is replaced as a whole."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        partial = directory / f"{name}.partial"
        partial.write_bytes(content)
        partial.replace(directory / name)


class RayEngine:
    """One task of one CPU per run.

    Args:
        address: of a cluster; None starts a local one for the time of the experiment.
        processes: how many runs at a time; None takes all CPUs of the cluster.

    Raises:
        ExperimentError: on entry, if the cluster cannot be reached.
    """

    def __init__(self, *, address: str | None, processes: int | None) -> None:
        self._address = address
        self._wanted = processes
        self._asked = Wish.GO_ON
        self._board: Any = None

    @property
    def processes(self) -> int:
        """How many runs are under way at the same time."""
        return self._wanted or max(1, int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        try:
            if self._address is None:
                ray.init(
                    address="local",
                    num_cpus=self._wanted,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _node_ip_address="127.0.0.1",
                )
            else:
                _require_answer(self._address)
                ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:
            where = self._address or "a local cluster"
            raise ExperimentError(
                f"Ray cannot be reached at {where}: {error}; `ray status` on its head node tells more"
            ) from error
        self._board = ray.remote(num_cpus=0)(Board).remote()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ray.shutdown()

    def ask(self, wish: Wish) -> None:
        """Stop or end what is under way; the rest is not begun."""
        self._asked = wish
        ray.get(self._board.ask.remote(wish))

    def run(self, jobs: Sequence[Job]) -> Generator[Progress | Ended | None]:
        """Run all jobs; a node that is lost fails its runs alone, each after two more attempts elsewhere."""
        task = ray.remote(num_cpus=1, max_retries=2)(compute)
        waiting = iter(jobs)
        pending: dict[Any, Job] = {}
        limit = self._wanted or len(jobs)  # a cluster that grows by demand has to see it
        while True:
            while self._asked is Wish.GO_ON and len(pending) < limit and (job := next(waiting, None)):
                files = {} if job.anew else read_files(job.directory)
                pending[task.remote(job, files, self._board)] = job
            if not pending:
                return
            ready, _ = ray.wait([*pending], timeout=LOOK_EVERY_S)
            yield from ray.get(self._board.take.remote())
            for reference in ready:
                yield _ended(pending.pop(reference), reference)
            yield None


def _ended(job: Job, reference: ray.ObjectRef[tuple[Ended, Files]]) -> Ended:
    try:
        ended, files = ray.get(reference)
    except ray.exceptions.RayError as error:
        return Ended(run=job.run, code=None, error=f"Ray lost it: {_first_line(error)}")
    if job.anew:
        shutil.rmtree(job.directory, ignore_errors=True)
    write_files(job.directory, files)
    return ended


def _require_answer(address: str) -> None:
    """Raise OSError if nothing listens there; Ray itself would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:  # others are names such as auto
        with socket.create_connection((host, int(port)), timeout=CONNECT_S):
            pass


def _first_line(error: Exception) -> str:
    lines: Iterator[str] = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
