"""Inference in process, as the server does it for one robot: no wire at all."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.case import Case
from benchmarks.child import Ask, main
from server.bundle import load_bundle
from server.runtime import Detail, Runtime


@contextlib.contextmanager
def client(case: Case) -> Iterator[Ask]:
    """The server's own runtime, one row with the full summary."""
    runtime = Runtime(load_bundle(Path(case.bundle)))
    rows = itertools.cycle(np.asarray(case.observations, np.float32)[:, np.newaxis])
    yield lambda: runtime.infer(next(rows), Detail.SUMMARY)


if __name__ == "__main__":
    main(clients={"process": client})
