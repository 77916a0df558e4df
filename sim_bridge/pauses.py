"""Keeping the interpreter's own pauses out of the control loop."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_INTERVAL_S = 0.0005


@contextmanager
def short_interpreter_pauses() -> Iterator[None]:
    """Within this block the interpreter holds up the control thread for as short a time as it can.

    A full garbage collection visits every object of every imported library, tens of milliseconds at an arbitrary tick.
    Freezing sets those objects aside once, so that later collections visit only what the loop itself made since. The
    collector stays on: an episode may be long, and cycles that nobody collects would fill the memory.

    The threads that receive, record and display share the interpreter with the control thread. A shorter switch
    interval makes them hand it over sooner.
    """
    switch_interval_s = sys.getswitchinterval()
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(switch_interval_s)
        gc.unfreeze()
