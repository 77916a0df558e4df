"""The processes of a measurement: a server that serves until it is told to stop, a client that asks as it is told.

`python -m benchmarks.wires.NAME serve CASE` and `... ask WIRE CASE`. A client prints `ready` after its first answer; then it
answers each line of JSON arguments of `paced_calls` by one line with what the calls took. Runs in the environments of peers
too, so it needs the standard library alone.
"""

import contextlib
import dataclasses
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from types import MappingProxyType
from typing import IO

from benchmarks.case import Case
from benchmarks.paced import paced_calls

Ask = Callable[[], object]
Client = Callable[[Case], AbstractContextManager[Ask]]
Serve = Callable[[Case], None]
START_TIMEOUT_S = 60.0
RETRY_S = 0.2


def main(*, clients: Mapping[str, Client] = MappingProxyType({}), serve: Serve | None = None) -> None:
    """Be the server or one of the clients, by the command line.

    Args:
        clients: by the names of their wires; each gives a call that asks once and waits for the whole answer.
        serve: serves until the process is ended.
    """
    kind, *names, path = sys.argv[1:]
    case = Case.read(path)
    if kind == "serve" and serve is not None:
        serve(case)
        return
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever a library prints must not stand among the answers
    with contextlib.ExitStack() as stack:
        ask = _answered(clients[names[0]], case, stack)
        _ask_as_told(ask, sys.stdin, answers)


def _answered(client: Client, case: Case, stack: contextlib.ExitStack) -> Ask:
    """The call of a client that has had its first answer; asks again while the server is still loading."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            with contextlib.ExitStack() as trial:
                ask = trial.enter_context(client(case))
                ask()
                stack.push(trial.pop_all())
                return ask
        except Exception:  # every library has errors of its own for a server that is not ready
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)


def _ask_as_told(ask: Ask, orders: IO[str], answers: IO[str]) -> None:
    # What was imported lives as long as the process: the collector need not look at it between two ticks.
    gc.collect()
    gc.freeze()
    print("ready", file=answers, flush=True)
    for order in orders:
        calls = paced_calls(ask, **json.loads(order))
        print(json.dumps(dataclasses.asdict(calls)), file=answers, flush=True)
