# /// script
# dependencies = ["litserve", "requests"]
# [tool.dst-bench.rows]
# litserve_http = { name = "LitServe, HTTP with JSON (requests)", wire = "http" }
# ///
# mypy: disable-error-code="import-not-found,import-untyped"
"""LitServe with its defaults: one worker process, JSON over HTTP."""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import litserve
import numpy as np
import requests
from numpy.typing import NDArray

from benchmarks.case import Case
from benchmarks.child import Ask, main
from benchmarks.peers.model import open_model

TIMEOUT_S = 10


class Policy(litserve.LitAPI):  # type: ignore[misc]
    """One observation in, all outputs back."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def setup(self, device: str) -> None:  # noqa: ARG002 (LitServe passes it)
        """Load the model in LitServe's worker."""
        self.model = open_model(self.case)

    def decode_request(self, request: dict[str, Any]) -> NDArray[np.float32]:
        """JSON to numpy."""
        return np.asarray(request["observation"], np.float32)[np.newaxis]

    def predict(self, rows: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Inference."""
        return self.model(rows)

    def encode_response(self, outputs: dict[str, NDArray[np.float32]]) -> dict[str, Any]:
        """Numpy to JSON."""
        return {name: values[0].tolist() for name, values in outputs.items()}


def serve(case: Case) -> None:
    """Serve until the process is ended."""
    server = litserve.LitServer(Policy(case), accelerator="cpu")
    server.run(host="127.0.0.1", port=case.port("http"), generate_client_file=False, log_level="warning")


@contextlib.contextmanager
def client(case: Case) -> Iterator[Ask]:
    """One connection that is kept."""
    bodies = itertools.cycle([{"observation": row} for row in case.observations])
    with requests.Session() as session:

        def ask() -> dict[str, Any]:
            reply = session.post(f"{case.http}/predict", json=next(bodies), timeout=TIMEOUT_S)
            reply.raise_for_status()
            answer: dict[str, Any] = reply.json()
            return answer

        case.check(ask())
        yield ask


if __name__ == "__main__":
    main(clients={"http": client}, serve=serve)
