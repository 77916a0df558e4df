"""`dst-serve` as a process of its own."""

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[2]
ANYWHERE = ("--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")


def command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "server", *map(str, arguments)]


def refused(*arguments: Any, env: dict[str, str] | None = None) -> str:
    """Standard error of a server that does not start."""
    done = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=60, check=False, env=env
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "ready" not in done.stdout
    return done.stderr


class Process:
    """A server that is ready."""

    def __init__(self, *arguments: Any, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command(*arguments), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        watchdog = threading.Timer(60, self.process.kill)
        watchdog.start()
        self._errors: list[str] = []
        assert self.process.stderr is not None
        assert self.process.stdout is not None
        self._reading = threading.Thread(target=self._errors.extend, args=(self.process.stderr,), daemon=True)
        self._reading.start()
        self.output = []
        for line in self.process.stdout:
            self.output.append(line)
            if line.startswith("ready "):
                break
        watchdog.cancel()
        ready = re.fullmatch(r"ready grpc=(\S+) http=(http://\S+)\n", self.output[-1] if self.output else "")
        assert ready, (self.output, self._errors)
        self.grpc, self.http = ready.groups()

    @property
    def stderr(self) -> str:
        """What it has written so far; all of it once it has stopped."""
        return "".join(self._errors)

    def logged(self) -> list[dict[str, Any]]:
        """What it has logged so far, with `--log-format json`."""
        return [json.loads(line) for line in list(self._errors) if line.startswith("{")]

    def __enter__(self) -> Self:
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        try:
            code = self.process.wait(timeout=30)
        finally:
            self.process.kill()
        self._reading.join(30)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()
        return code

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.stop()
