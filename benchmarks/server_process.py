"""A policy server in a process of its own, for as long as it is measured."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.errors import BenchmarkError

STOP_TIMEOUT_S = 20.0


@contextlib.contextmanager
def server_process(bundle: Path) -> Iterator[tuple[str, str]]:
    """Serve a bundle on free ports; gives the gRPC address and the HTTP base.

    Raises:
        BenchmarkError: if the server ends before it is ready.
    """
    command = [sys.executable, "-m", "server", str(bundle), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            ready = next((line for line in process.stdout if line.startswith("ready ")), None)
            if ready is None:
                raise BenchmarkError("the server ended before it was ready; its message stands above")
            grpc, page = (part.partition("=")[2] for part in ready.split()[1:3])
            yield grpc, page
        finally:
            stop(process, timeout_s=STOP_TIMEOUT_S)


def stop(process: subprocess.Popen[str], *, timeout_s: float) -> None:
    """End a process: asked first, killed where it has not ended in time."""
    process.terminate()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
