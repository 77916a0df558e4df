"""One job as a child process, seen from its parent."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.experiments.engines import Ended, Job, Progress, Wish
from dst_core.checkpoint import CHECKPOINT_FILE
from dst_core.metrics import METRICS_FILE
from dst_core.train import INTERRUPTED

LOG_FILE: Final = "train.log"
LOOK_EVERY_S: Final = 0.5
TAIL_BYTES: Final = 16_384


def run_job(job: Job, *, report: Callable[[Progress], Wish]) -> Ended:
    """Train in a process of its own with one thread, from the checkpoint in its directory if there is one.

    Args:
        job: what to run.
        report: told how far the run is, every half second; what it returns is done.

    Returns:
        How dst-train ended, with the last line of its log unless it finished; as after Ctrl-C if it was not to be begun.
    """
    seen = Progress(run=job.run, step=0, latest_return=None)
    if report(seen) is not Wish.GO_ON:
        return Ended(run=job.run, code=INTERRUPTED)
    if job.anew:
        shutil.rmtree(job.directory, ignore_errors=True)
    job.directory.mkdir(parents=True, exist_ok=True)
    resume = ("--resume",) if (job.directory / CHECKPOINT_FILE).exists() else ()
    command = (
        *(sys.executable, "-m", "benchmarks.experiments.child"),
        *(*job.arguments, "--out", str(job.directory), *resume),
    )
    with (
        (job.directory / LOG_FILE).open("ab") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # held open: the child ends when it closes, be it by the death of this process
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on once
        ) as process,
    ):
        assert process.stdin is not None
        while True:
            try:
                code = process.wait(timeout=LOOK_EVERY_S)
            except subprocess.TimeoutExpired:
                seen = _look(job, seen)
            else:
                return Ended(run=job.run, code=code, error=_last_words(job) if code else "")
            wish = report(seen)
            if wish is Wish.STOP:
                process.stdin.close()
            elif wish is Wish.END:
                os.killpg(process.pid, signal.SIGKILL)  # with compilers it may have started


def _last_words(job: Job) -> str:
    """The last line of a log, about the run rather than about the directory it happened to have."""
    lines = (job.directory / LOG_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last.removeprefix("dst-train: ").replace(str(job.directory), job.run)


def _look(job: Job, seen: Progress) -> Progress:
    """Progress by the end of the run's log of numbers."""
    try:
        lines = _tail(job.directory / METRICS_FILE)
    except FileNotFoundError:
        return seen
    step, latest = seen.step, seen.latest_return
    for encoded in lines:
        try:
            line = json.loads(encoded)
        except ValueError:  # cut at either end
            continue
        if isinstance(line, dict):
            step = line["step"]
            latest = line["return_mean"] if line["kind"] == "evaluation" else latest
    return Progress(run=job.run, step=step, latest_return=latest)


def _tail(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
        return file.read().splitlines()
