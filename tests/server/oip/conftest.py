import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from protos import policy_pb2 as pb
from server.runtime import Detail, Runtime
from tests.server.running import PATIENCE_S, Running


@pytest.fixture(scope="module")
def grpc_client(running: Running):
    with tritonclient.grpc.InferenceServerClient(running.grpc) as client:
        yield client


@pytest.fixture(scope="module")
def http_client(running: Running):
    with tritonclient.http.InferenceServerClient(running.http.removeprefix("http://")) as client:
        yield client


@pytest.fixture(scope="session")
def runtime(loaded):
    """The policy itself, beside the server."""
    return Runtime(loaded, "cpu")


@pytest.fixture(scope="session")
def rows():
    """A few observations."""
    return np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture(scope="session")
def candidates():
    """Four candidate actions for each of `rows`, within the limits."""
    return np.random.default_rng(1).uniform(-0.4, 0.4, size=(5, 4, 2)).astype(np.float32)


@pytest.fixture(scope="session")
def decided(runtime, rows):
    """Every output of the policy for `rows` at once, by name."""
    return dict(zip(runtime.outputs[Detail.SAMPLES], runtime.infer(rows, Detail.SAMPLES), strict=True))


@pytest.fixture(scope="session")
def assessed(runtime, rows, candidates):
    """Every output of the policy for each of `candidates`, by name."""
    return runtime.assess(rows, candidates, Detail.SAMPLES)


def native_decision(running: Running, row: np.ndarray) -> pb.Decision:
    """What the native wire answers."""
    request = pb.ActRequest(observation=row.tolist(), detail=pb.DETAIL_SAMPLES)
    return running.stub.Act(request, timeout=PATIENCE_S).decision


def same_as_native(decision: pb.Decision, output: str) -> np.ndarray:
    """An output of the first row, from where the native wire has it."""
    if output == "action":
        return np.float32(decision.action)
    if output.endswith("_samples"):
        samples = {"return_samples": "returns", "gradient_samples": "action_gradients"}
        return np.float32(getattr(decision.samples, samples[output]))
    return np.float32(getattr(decision.summary, output))
