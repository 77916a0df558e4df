"""Servers in processes of their own, for as long as they are measured."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO

from benchmarks.child_environment import child_environment
from benchmarks.errors import BenchmarkError

STOP_TIMEOUT_S = 20.0
START_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answers."""

    pid: int
    grpc: str
    """`host:port`."""
    http: str
    """Base of its addresses."""
    ready_s: float
    """From starting the process to being ready, seconds."""


@contextlib.contextmanager
def server_process(bundle: Path) -> Iterator[Server]:
    """Serve a bundle with `dst-serve` on free ports.

    Raises:
        BenchmarkError: if the server ends before it is ready.
    """
    command = [sys.executable, "-m", "server", str(bundle), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"]
    began = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=child_environment(), start_new_session=True
        )
        try:
            assert process.stdout is not None
            ready = next((line for line in process.stdout if line.startswith("ready ")), None)
            if ready is None:
                raise BenchmarkError(f"the server ended before it was ready: {last_line(log)}")
            ready_s = time.perf_counter() - began
            addresses = dict(part.split("=", 1) for part in ready.split()[1:])
            yield Server(pid=process.pid, grpc=addresses["grpc"], http=addresses["http"], ready_s=ready_s)
        finally:
            stop(process, timeout_s=STOP_TIMEOUT_S)


@contextlib.contextmanager
def listening_process(
    command: Sequence[str], *, ports: Sequence[int], environment: Mapping[str, str] = MappingProxyType({})
) -> Iterator[int]:
    """Run a server until it listens on all of its ports; gives its process id.

    Args:
        command: program and arguments.
        ports: on 127.0.0.1.
        environment: variables to set besides those of this process.

    Raises:
        BenchmarkError: if it ends, or does not listen in time; with the last line it wrote.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, text=True, env=child_environment(environment), start_new_session=True
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            for port in ports:
                while not _listens(port):
                    if process.poll() is not None or time.monotonic() > deadline:
                        reason = (
                            "ended" if process.poll() is not None else f"did not listen within {START_TIMEOUT_S:.0f} s"
                        )
                        raise BenchmarkError(f"its server {reason}: {last_line(log)}")
                    time.sleep(LOOK_EVERY_S)
            yield process.pid
        finally:
            stop(process, timeout_s=STOP_TIMEOUT_S)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def last_line(log: IO[str]) -> str:
    """The last line of what a process wrote."""
    log.seek(0)
    return next((line for line in reversed(log.read().splitlines()) if line.strip()), "it said nothing")[:300]


def stop(process: subprocess.Popen[str], *, timeout_s: float) -> None:
    """End a process that leads a session, with all it started: asked first, killed where it has not ended in time."""
    process.terminate()
    if process.stdout is not None:
        process.stdout.close()
    try:
        process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError):  # nothing is left of it
        os.killpg(process.pid, signal.SIGKILL)
