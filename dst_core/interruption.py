"""Ctrl-C and SIGTERM as a request to stop and save."""

import signal
import sys
import time
from types import FrameType
from typing import Any, Self

SAME_REQUEST_S = 1.0


class Interruption:
    """SIGINT and SIGTERM ask the run within this context to stop and save.

    The same request often comes twice, from the terminal and from the parent process; a signal that is repeated after a second means
    that someone will not wait, and ends the process without saving.
    """

    def __init__(self) -> None:
        self._asked: dict[int, float] = {}
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._asked)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self.ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """By the custom of shells, 128 and the number of the first signal."""
        return 128 + next(iter(self._asked))

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if now - self._asked.setdefault(number, now) >= SAME_REQUEST_S:
            sys.exit(self.exit_code)
