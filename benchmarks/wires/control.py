"""The control stream, full summary, with the robot's own client."""

import contextlib
import itertools
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.case import Case
from benchmarks.child import Ask, main
from benchmarks.errors import BenchmarkError
from protos import policy_pb2 as pb
from sim_bridge.client import PolicyClient
from sim_bridge.exchange import Outcome

BUDGET_NS = 1_000_000_000
STATUS = pb.RobotStatus(guard=pb.GUARD_STATE_NOMINAL)


@contextlib.contextmanager
def client(case: Case) -> Iterator[Ask]:
    """One session of one robot."""
    rows = itertools.cycle(np.asarray(case.observations, np.float32))
    ticks = itertools.count(1)
    with PolicyClient(case.grpc) as connection:
        connection.connect()
        with connection.control(policy=case.policy, robot="benchmark") as session:

            def ask() -> None:
                deadline_ns = time.monotonic_ns() + BUDGET_NS
                reply = session.decide(tick=next(ticks), observation=next(rows), deadline_ns=deadline_ns, status=STATUS)
                if reply.outcome is not Outcome.OK:
                    raise BenchmarkError(f"the server gave no decision: {reply.problem}")

            yield ask


if __name__ == "__main__":
    main(clients={"grpc": client})
