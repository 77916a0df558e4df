"""Commands of the training core called in the process of the test: one of its own takes seconds to import torch."""

import signal
import sys
from collections.abc import Callable

import pytest


def call(main: Callable[[], None], *arguments: object) -> int:
    """The exit code of an entry point with these arguments; handlers of signals are put back as they were."""
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as context:
        context.setattr(sys, "argv", ["command", *map(str, arguments)])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            for which, handler in previous.items():
                signal.signal(which, handler)
    return 0
