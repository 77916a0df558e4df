"""Loading, unloading and statistics over several workers, by the real tritonclient: all processes do it, or none."""

import asyncio
import contextlib
import os
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from protos import open_inference_pb2 as oip
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server.bundle import load_bundle
from server.worker_link import Link, WorkerClient, ask
from tests.server.oip.test_repository import action, index, refusal, replace
from tests.server.running import PATIENCE_S, eventually
from tests.server.test_workers import NOT_SERVING, SERVING, Workers, children, decide, health, spread_robots

ROW = np.float32([[0.1, 0.2, 0.3]])


class Server(Workers):
    """A server of two workers, with a robot in each, and what each of its processes says."""

    def __enter__(self):
        self._closing = contextlib.ExitStack()
        self.robots = {}
        self.reach()
        return self

    def __exit__(self, *_):
        self._closing.close()
        super().__exit__()

    def reach(self):
        """Robots in the workers that are there now."""
        self.robots = {worker: robots[0] for worker, robots in self._closing.enter_context(spread_robots(self)).items()}

    def client(self, wire):
        module, address = (
            (tritonclient.grpc, self.grpc) if wire == "grpc" else (tritonclient.http, self.http.removeprefix("http://"))
        )
        options = {"network_timeout": PATIENCE_S} if wire == "http" else {}
        return self._closing.enter_context(module.InferenceServerClient(address, **options))

    def stubs(self):
        return [GRPCInferenceServiceStub(robot.channel) for robot in self.robots.values()]

    def told(self):
        """What every process says of the one policy: version, state and reason."""
        (front,) = httpx.post(f"{self.http}/v2/repository/index", timeout=PATIENCE_S).json()
        told = {(front["version"], front["state"], front["reason"])}
        for channel in self.channels():
            (model,) = (
                GRPCInferenceServiceStub(channel)
                .RepositoryIndex(oip.RepositoryIndexRequest(), timeout=PATIENCE_S)
                .models
            )
            told.add((model.version, model.state, model.reason))
        (same,) = told
        return same

    def channels(self):
        """New channels, one after the other; both workers are among their ends, but once in ten million times."""
        for _ in range(24):
            with grpc.insecure_channel(self.grpc, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
                yield channel

    def restart(self, worker):
        """Kills a worker and waits until another is in its place."""
        pid = self.pid(worker)
        os.kill(pid, signal.SIGKILL)
        self.back(worker, pid)

    def back(self, worker, pid):
        """Waits until another is in the place of one that was killed."""
        eventually(lambda: self.pid(worker) != pid and "workers" not in self.ready().text, "the worker came back")


def version(directory):
    return load_bundle(directory).manifest.version


@pytest.mark.parametrize("wire", ["grpc", "http"])
def test_every_process_serves_what_was_loaded_and_no_more_what_was_unloaded(edited, retrained, wire):
    with Server(edited) as server:
        client, before = server.client(wire), action(server.client(wire))
        replace(edited, retrained)
        assert server.told() == (index(client)["version"], "READY", "")
        client.load_model("reacher")
        assert server.told() == (version(retrained), "READY", "")
        after = action(server.client("http"))
        assert not np.array_equal(after, before)
        for stub in server.stubs():
            np.testing.assert_array_equal(infer(stub), after)
        assert server.shown()["server"]["policies"][0]["version"] == version(retrained)
        client.unload_model("reacher")
        assert server.told() == ("", "UNAVAILABLE", "unloaded")
        for robot in server.robots.values():
            eventually(lambda robot=robot: health(robot.channel, "reacher") == NOT_SERVING, "health follows")
            assert health(robot.channel, "") == NOT_SERVING
        assert server.ready().json() == {"error": "no policy is loaded; load one"}
        assert server.shown()["server"]["policies"] == []
        assert not any("reacher" in series for series in server.metrics())
        client.unload_model("reacher")
        client.load_model("reacher")
        for robot in server.robots.values():
            eventually(lambda robot=robot: health(robot.channel, "reacher") == SERVING, "health follows")
            assert health(robot.channel, "") == SERVING
        assert server.ready().status_code == 200
        for stub in server.stubs():
            np.testing.assert_array_equal(infer(stub), after)
        status, message = refusal(lambda: client.load_model("walker"))
        assert status in ("StatusCode.NOT_FOUND", "404")
        assert "it holds 'reacher'" in message


def infer(stub):
    request = oip.ModelInferRequest(model_name="reacher", raw_input_contents=[ROW.tobytes()])
    request.inputs.add(name="observation", datatype="FP32", shape=ROW.shape)
    request.outputs.add(name="action")
    return np.frombuffer(stub.ModelInfer(request, timeout=PATIENCE_S).raw_output_contents[0], np.float32).reshape(1, -1)


def test_bundle_that_is_refused_changes_no_process(edited):
    with Server(edited) as server:
        served = version(edited)
        for wire, spoiled in (("grpc", "policy.onnx"), ("http", "actor.onnx")):
            (edited / spoiled).write_bytes(b"truncated")
            status, message = refusal(lambda wire=wire: server.client(wire).load_model("reacher"))
            assert status == {"grpc": "StatusCode.FAILED_PRECONDITION", "http": "503"}[wire]
            assert message.startswith(f"policy 'reacher' was not loaded: bundle refused: {spoiled}: SHA-256 is")
            told = server.told()
            assert told[:2] == (served, "READY")
            assert told[2].startswith(f"the last load failed: bundle refused: {spoiled}: SHA-256 is")


def test_what_one_worker_refuses_none_serves(edited, retrained):
    with Server(edited) as server:
        client, served = server.client("http"), version(edited)
        replace(edited, retrained)
        with no_file_more(server.pid(0), but=1):
            _, message = refusal(lambda: client.load_model("reacher"))
        assert message.startswith(
            "policy 'reacher' was not loaded: worker 0: bundle refused: manifest.json: cannot be opened"
        )
        assert "worker 1" not in message
        assert server.told() == (served, "READY", f"the last load failed: {message.partition('not loaded: ')[2]}")
        for robot in server.robots.values():
            decide(robot, 1)
        client.load_model("reacher")
        assert server.told() == (version(retrained), "READY", "")


@contextlib.contextmanager
def no_file_more(pid, *, but):
    """Has a process open no file but so many more than it has open."""
    used = {int(file.name) for file in Path(f"/proc/{pid}/fd").iterdir()}
    free = [number for number in range(1024) if number not in used]
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[but], before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_worker_that_dies_while_a_bundle_is_loaded_leaves_all_as_they_were(edited, retrained):
    with Server(edited) as server, ThreadPoolExecutor(1) as pool:
        client, served, pid = server.client("http"), version(edited), server.pid(0)
        replace(edited, retrained)
        os.kill(pid, signal.SIGSTOP)
        loading = pool.submit(server.client("http").load_model, "reacher")
        eventually(
            lambda: any(line.get("worker") == "1" and line["message"].endswith(" read") for line in server.logged()),
            "the other worker has read it",
        )
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(InferenceServerException, match="not loaded: worker 0: it gave no answer"):
            loading.result(PATIENCE_S)
        server.back(0, pid)
        assert server.told()[:2] == (served, "READY")
        client.load_model("reacher")
        assert server.told() == (version(retrained), "READY", "")


def test_worker_that_is_started_again_serves_what_is_loaded_now(edited, retrained, bundle):
    with Server(edited) as server:
        client, now = server.client("http"), version(retrained)
        replace(edited, retrained)
        client.load_model("reacher")
        replace(edited, bundle)
        server.restart(0)
        assert server.told() == (now, "READY", "")
        client.unload_model("reacher")
        server.restart(1)
        assert server.told() == ("", "UNAVAILABLE", "unloaded")
        assert {health(channel, "reacher") for channel in server.channels()} == {NOT_SERVING}
        client.load_model("reacher")
        assert server.told() == (version(bundle), "READY", "")


def test_worker_that_does_not_follow_is_ended_and_comes_up_with_what_is_loaded(edited):
    with Server(edited) as server:
        client, pid = server.client("http"), server.pid(0)
        os.kill(pid, signal.SIGSTOP)
        client.unload_model("reacher")
        server.back(0, pid)
        assert server.told() == ("", "UNAVAILABLE", "unloaded")


def is_worker(pid):
    """Whether the process has become what it was started as."""
    return b"server.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()


def test_nothing_is_loaded_while_a_worker_is_missing(bundle):
    with Server(bundle) as server:
        front, old = server.process.pid, server.pid(0)
        others = children(front) - {old}
        os.kill(old, signal.SIGKILL)
        started = []
        while not started:
            started = [pid for pid in children(front) - others - {old} if is_worker(pid)]
        (new,) = started
        os.kill(new, signal.SIGSTOP)
        try:
            for call in (server.client("http").load_model, server.client("http").unload_model):
                status, message = refusal(lambda call=call: call("reacher"))
                assert (status, message) == (
                    "503",
                    "nothing can be loaded or unloaded now: 1 of 2 workers are ready; try again",
                )
        finally:
            os.kill(new, signal.SIGCONT)
        server.back(0, old)
        server.client("grpc").load_model("reacher")


def test_loads_at_once_come_one_after_another(edited, retrained):
    with Server(edited) as server:
        replace(edited, retrained)
        clients = [server.client(wire) for wire in ("grpc", "http") * 3]
        with ThreadPoolExecutor(len(clients)) as pool:
            for loading in [pool.submit(client.load_model, "reacher") for client in clients]:
                loading.result(PATIENCE_S)
        assert server.told() == (version(retrained), "READY", "")


def counts(statistics):
    """Rows, requests, failures and whether time was counted, of the one model."""
    if not isinstance(statistics, dict):
        (model,) = statistics.model_stats
        stages = model.inference_stats
        return model.inference_count, model.execution_count, stages.fail.count, stages.compute_infer.ns
    (model,) = statistics["model_stats"]
    stages = model["inference_stats"]
    return model["inference_count"], model["execution_count"], stages["fail"]["count"], stages["compute_infer"]["ns"]


def test_statistics_are_sums_over_all_processes(bundle):
    with Server(bundle) as server:
        clients = [server.client("grpc"), server.client("http")]
        for times, stub in enumerate(server.stubs(), 1):
            for _ in range(times):
                infer(stub)
        action(clients[1])
        first = [counts(client.get_inference_statistics("reacher")) for client in clients]
        assert [numbers[:3] for numbers in first] == [(4, 4, 0)] * 2
        assert first[0] == first[1]
        assert first[0][3] > 0
        for stub in server.stubs():
            assert counts(stub.ModelStatistics(oip.ModelStatisticsRequest(), timeout=PATIENCE_S)) == first[0]
        server.restart(0)
        server.reach()
        assert counts(server.client("grpc").get_inference_statistics()) == first[0]
        for stub in server.stubs():
            infer(stub)
        assert counts(clients[1].get_inference_statistics())[:3] == (6, 6, 0)
        clients[1].load_model("reacher")
        assert counts(clients[1].get_inference_statistics()) == (0, 0, 0, 0)
        assert counts(server.client("grpc").get_inference_statistics()) == (0, 0, 0, 0)


def test_a_process_that_does_not_answer_is_given_up_at_the_deadline(tmp_path):
    stuck, answered = asyncio.Event(), threading.Event()

    async def answer(_question):
        yield "begun"
        await stuck.wait()
        answered.set()

    async def scenario():
        link = Link(answer)
        await link.start(str(tmp_path / "link"))
        assert await ask(tmp_path / "link", {"ask": "anything"}, 0.05) is None
        assert not answered.is_set()
        stuck.set()
        assert await ask(tmp_path / "link", {"ask": "anything"}) == ["begun"]
        await link.stop()
        assert await WorkerClient(tmp_path / "nobody").statistics() is None

    asyncio.run(scenario())
