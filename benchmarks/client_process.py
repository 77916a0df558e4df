"""Clients in processes of their own: told when and how often to ask, they say what it took."""

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Self

from benchmarks.child_environment import child_environment
from benchmarks.errors import BenchmarkError
from benchmarks.paced import Calls
from benchmarks.server_process import STOP_TIMEOUT_S, last_line, stop


class Client:
    """One client that is connected and has had its first answer.

    Args:
        command: program and arguments; see `benchmarks.child`.
        environment: variables to set besides those of this process.

    Raises:
        BenchmarkError: if it ends before it has had an answer; with the last line it wrote.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] = MappingProxyType({})) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (closed with the client)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=child_environment(environment),
            start_new_session=True,
        )

    def wait_until_ready(self) -> None:
        """Wait for its first answer."""
        if self._line() != "ready":
            raise BenchmarkError("its client is out of step")

    def begin(self, *, runs: int, period_s: float, warm_up: int = 0, start_ns: int | None = None) -> None:
        """Have it make calls; see `benchmarks.paced.paced_calls`."""
        order = {"runs": runs, "period_s": period_s, "warm_up": warm_up, "start_ns": start_ns}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # why it ended is told where its answer is missed
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def result(self) -> Calls:
        """What the calls begun last took; waits for them."""
        values: dict[str, Any] = json.loads(self._line())
        return Calls(**values)

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise BenchmarkError(f"its client ended: {last_line(self._log)}")
        return line.rstrip("\n")

    def close(self) -> None:
        """End it."""
        stop(self._process, timeout_s=STOP_TIMEOUT_S)
        for stream in (self._process.stdin, self._process.stdout, self._log):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()

    def __enter__(self) -> Self:
        try:
            self.wait_until_ready()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
