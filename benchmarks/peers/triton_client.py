# /// script
# dependencies = ["tritonclient[grpc,http]"]
# ///
# mypy: disable-error-code="import-not-found,import-untyped"
"""NVIDIA's tritonclient against any server of the Open Inference Protocol, over gRPC and HTTP."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from benchmarks.case import Case
from benchmarks.child import Ask, main


@contextlib.contextmanager
def grpc_client(case: Case) -> Iterator[Ask]:
    """One channel."""
    with tritonclient.grpc.InferenceServerClient(case.grpc) as connection:
        yield _ask(case, tritonclient.grpc, connection, {})


@contextlib.contextmanager
def http_client(case: Case) -> Iterator[Ask]:
    """One connection that is kept, binary tensors both ways."""
    with tritonclient.http.InferenceServerClient(case.http.removeprefix("http://")) as connection:
        yield _ask(case, tritonclient.http, connection, {"binary_data": True})


@contextlib.contextmanager
def json_client(case: Case) -> Iterator[Ask]:
    """The same with tensors as JSON, for servers without the binary tensor extension."""
    with tritonclient.http.InferenceServerClient(case.http.removeprefix("http://")) as connection:
        yield _ask(case, tritonclient.http, connection, {"binary_data": False})


def _ask(case: Case, library: Any, connection: Any, tensors: dict[str, bool]) -> Ask:  # noqa: ANN401 (untyped libraries)
    rows = itertools.cycle(np.asarray(case.observations, np.float32)[:, np.newaxis])
    outputs = [library.InferRequestedOutput(name, **tensors) for name in case.outputs]

    def ask() -> dict[str, Any]:
        row = next(rows)
        observation = library.InferInput("observation", list(row.shape), "FP32")
        observation.set_data_from_numpy(row, **tensors)
        result = connection.infer(case.policy, [observation], outputs=outputs)
        return {name: result.as_numpy(name) for name in case.outputs}

    case.check([name for name, values in ask().items() if values is not None])
    return ask


if __name__ == "__main__":
    main(clients={"grpc": grpc_client, "http": http_client, "json": json_client})
