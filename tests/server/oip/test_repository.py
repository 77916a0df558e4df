"""Loading and unloading while the server runs, by the real tritonclient."""

import asyncio
import shutil
import threading

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from server.bundle import load_bundle
from server.core import Core
from server.errors import NotReadyError
from server.repository import Repository
from server.runtime import Runtime
from tests.server import small_bundle
from tests.server.oip.triton import inputs
from tests.server.running import PATIENCE_S, Running, eventually

ROW = np.float32([[0.1, 0.2, 0.3]])


@pytest.fixture
def running(edited):
    """The server of a bundle that a test may change."""
    with Running.of(load_bundle(edited)) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def client(running, request):
    """Either client; they have the same methods."""
    module = {"grpc": tritonclient.grpc, "http": tritonclient.http}[request.param]
    address = running.grpc if request.param == "grpc" else running.http.removeprefix("http://")
    with module.InferenceServerClient(address) as own:
        yield own


def index(client):
    listed = client.get_model_repository_index()
    if not isinstance(listed, list):
        listed = [{"name": m.name, "version": m.version, "state": m.state, "reason": m.reason} for m in listed.models]
    (model,) = listed
    return model


def action(client, **options):
    module = tritonclient.grpc if isinstance(client, tritonclient.grpc.InferenceServerClient) else tritonclient.http
    return client.infer("reacher", inputs(module, ROW), **options).as_numpy("action")


def refusal(call):
    with pytest.raises(InferenceServerException) as refused:
        call()
    return refused.value.status(), refused.value.message()


def replace(directory, by):
    shutil.rmtree(directory)
    shutil.copytree(by, directory)


def test_index_tells_what_is_loaded(client, loaded):
    assert index(client) == {"name": "reacher", "version": loaded.manifest.version, "state": "READY", "reason": ""}


def test_load_serves_what_the_directory_holds_now(client, edited, retrained):
    before, version = action(client), index(client)["version"]
    replace(edited, retrained)
    np.testing.assert_array_equal(action(client), before)
    client.load_model("reacher")
    after = index(client)
    assert after["version"] == load_bundle(retrained).manifest.version != version
    assert not np.array_equal(action(client), before)
    assert not client.is_model_ready("reacher", version)
    status, _ = refusal(lambda: action(client, model_version=version))
    assert status in ("StatusCode.NOT_FOUND", "404")


def test_failed_load_leaves_what_was_served_and_says_why(client, edited):
    before, version = action(client), index(client)["version"]
    (edited / "policy.onnx").write_bytes(b"truncated")
    status, message = refusal(lambda: client.load_model("reacher"))
    assert status in ("StatusCode.FAILED_PRECONDITION", "503")
    assert "policy.onnx: SHA-256 is" in message
    assert str(edited) not in message
    np.testing.assert_array_equal(action(client), before)
    model = index(client)
    assert (model["state"], model["version"]) == ("READY", version)
    assert "the last load failed" in model["reason"]


def test_unload_and_load_again(client, running):
    before = action(client)
    client.unload_model("reacher")
    model = index(client)
    assert (model["state"], model["version"], model["reason"]) == ("UNAVAILABLE", "", "unloaded")
    assert not client.is_server_ready()
    assert not client.is_model_ready("reacher")
    status, message = refusal(lambda: action(client))
    assert status in ("StatusCode.FAILED_PRECONDITION", "503")
    assert "load it first" in message
    health = health_pb2_grpc.HealthStub(running.channel)
    asked = health_pb2.HealthCheckRequest(service="reacher")
    served = health_pb2.HealthCheckResponse
    eventually(lambda: health.Check(asked, timeout=PATIENCE_S).status == served.NOT_SERVING, "health follows")
    client.unload_model("reacher")
    client.load_model("reacher")
    np.testing.assert_array_equal(action(client), before)
    assert client.is_server_ready()
    eventually(lambda: health.Check(asked, timeout=PATIENCE_S).status == served.SERVING, "health follows")


def test_what_the_repository_does_not_hold_is_not_found(client):
    for call in (client.load_model, client.unload_model):
        status, message = refusal(lambda call=call: call("walker"))
        assert status in ("StatusCode.NOT_FOUND", "404")
        assert "it holds 'reacher'" in message


def test_a_bundle_of_another_name_is_refused(client, edited, tmp_path):
    replace(edited, small_bundle.uncalibrated(edited, tmp_path / "walker", name="walker"))
    status, message = refusal(lambda: client.load_model("reacher"))
    assert status in ("StatusCode.FAILED_PRECONDITION", "503")
    assert "holds policy 'walker' now" in message
    assert action(client).shape == (1, 2)


def test_overrides_of_a_bundle_are_refused(client):
    status, message = refusal(lambda: client.load_model("reacher", config='{"max_batch_size": 1}'))
    assert status in ("StatusCode.INVALID_ARGUMENT", "422")
    assert "parameters must be empty, got ['config']" in message


def test_only_ready_models_where_only_those_are_asked_for(running):
    assert len(running.client.post("/v2/repository/index", json={"ready": True}).json()) == 1
    running.client.post("/v2/repository/models/reacher/unload")
    assert running.client.post("/v2/repository/index", json={"ready": True}).json() == []
    assert len(running.client.post("/v2/repository/index").json()) == 1


def test_the_event_loop_goes_on_while_a_bundle_is_loaded(loaded):
    core = Core([])
    goes_on, runtimes = threading.Event(), []

    def load(directory):
        assert goes_on.wait(PATIENCE_S), "the loop waited for the load"
        runtimes.append(Runtime(load_bundle(directory), "cpu"))
        return runtimes[-1]

    async def scenario():
        repository = Repository(core, {"reacher": loaded.path}, load)
        loading = asyncio.create_task(repository.load("reacher"))
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError, match="load it first"):
            repository.check_loaded("reacher")
        goes_on.set()
        await loading
        assert core.policy("reacher").runtime is runtimes[0]
        await core.close()

    asyncio.run(scenario())


def test_requests_are_answered_while_a_policy_is_loaded_and_replaced(client, running, edited, retrained):
    """Another client asks without a pause while the policy is replaced ten times: every request is answered by some version."""
    original = edited.parent / "original"
    shutil.copytree(edited, original)
    expected, stopped, answers, failures = [action(client).tolist()], threading.Event(), [], []

    def ask():
        with tritonclient.grpc.InferenceServerClient(running.grpc) as other:
            while not stopped.is_set():
                try:
                    answers.append(action(other).tolist())
                except InferenceServerException as error:
                    failures.append(str(error))
                    return

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for turn in range(10):
            replace(edited, (retrained, original)[turn % 2])
            client.load_model("reacher")
            expected.append(action(client).tolist())
    finally:
        stopped.set()
        asking.join(PATIENCE_S)
    assert failures == []
    assert len(answers) > 10
    assert all(answer in expected for answer in answers)
