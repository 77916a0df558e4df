"""One decision per call, over gRPC and over HTTP, full summary."""

import contextlib
import http.client
import itertools
import json
from collections.abc import Iterator

import numpy as np

from benchmarks.case import Case
from benchmarks.child import Ask, main
from benchmarks.errors import BenchmarkError
from sim_bridge.client import PolicyClient


@contextlib.contextmanager
def grpc_client(case: Case) -> Iterator[Ask]:
    """`Act` with the robot's own client."""
    rows = itertools.cycle(np.asarray(case.observations, np.float32))
    with PolicyClient(case.grpc) as connection:
        connection.connect()
        yield lambda: connection.act(next(rows), policy=case.policy)


@contextlib.contextmanager
def http_client(case: Case) -> Iterator[Ask]:
    """The same as JSON, on a connection that is kept."""
    rows = itertools.cycle(case.observations)
    path = f"/v1/policies/{case.policy}/act"
    with contextlib.closing(http.client.HTTPConnection(case.http.removeprefix("http://"))) as connection:

        def post(body: str) -> http.client.HTTPResponse:
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            return connection.getresponse()

        def ask() -> None:
            body = json.dumps({"observation": next(rows)})
            try:
                reply = post(body)
            except ConnectionError:  # the server ends connections that nobody uses
                connection.close()
                reply = post(body)
            decision = json.load(reply)
            if reply.status != http.client.OK:
                raise BenchmarkError(f"the server refused: {decision}")

        yield ask


if __name__ == "__main__":
    main(clients={"grpc": grpc_client, "http": http_client})
