"""dst-train as a child process: it ends when its parent does, and tells what it ran on.

The parent holds the other end of standard input. When that closes, whether the parent asked or died, this process gets SIGINT, upon which
dst-train saves and ends.
"""

import os
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Final, NoReturn

CRASHED: Final = 70  # an uncaught exception would end with 1, as a divergence does
LAST_CALL_S: Final = 120.0  # a first update being compiled takes up to a minute
SETTING_FILE: Final = "setting.json"


def main() -> NoReturn:
    """Train with the arguments of dst-train on the command line."""
    signal.signal(signal.SIGINT, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})  # parents may block them, Ray does
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        from benchmarks.experiments.setting import write_setting  # noqa: PLC0415 (takes seconds, in which to be interrupted)
        from dst_core import train  # noqa: PLC0415

        write_setting(train.parse_arguments(sys.argv[1:]).out / SETTING_FILE)
        train.main()
    except Exception:  # noqa: BLE001 (told from a divergence by the exit code)
        traceback.print_exc()
    sys.exit(CRASHED)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _end_with_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not through sys.stdin, whose lock would be held when the interpreter ends
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(LAST_CALL_S)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
