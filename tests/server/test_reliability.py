"""Clients that misbehave disturb nobody and leave nothing behind."""

import asyncio
import contextlib
import functools
import itertools
import queue
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest

from protos import open_inference_pb2 as oip
from protos import policy_pb2 as pb
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from protos.policy_pb2_grpc import PolicyServiceStub
from server.live import MAX_SESSIONS
from server.runtime import Runtime
from tests.server.process import ANYWHERE, ROOT, Process
from tests.server.running import PATIENCE_S, SECOND, Robot, Running, decided, eventually

OBSERVATION = [0.1, 0.2, 0.3]
OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]
LONG_S = 280
"""More than any test takes, less than what a test may take."""


def observation(tick, values=OBSERVATION, **fields):
    fields = {"tick": tick, "sent_ns": tick, "validity_ns": 10 * SECOND, "values": values, **fields}
    return pb.ControlRequest(observation=pb.Observation(**fields))


class Witness:
    """A robot whose session goes on throughout: every answer must be of its own tick and observation, and fresh."""

    def __init__(self, address, runtime):
        observations = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32).tolist()
        self._expected = [(values, decided(runtime, values)) for values in observations]
        self._channel = grpc.insecure_channel(address, OWN_CONNECTION)
        self._requests = queue.SimpleQueue()
        self._responses = PolicyServiceStub(self._channel).Control(iter(self._requests.get, None), timeout=LONG_S)
        self._requests.put(pb.ControlRequest(open=pb.OpenSession(robot="witness")))
        assert next(self._responses).opened.session
        self._thread = threading.Thread(target=self._drive)
        self._stopped = False
        self.answers = 0
        self.wrong = None

    def _drive(self):
        for tick, (values, action) in enumerate(itertools.cycle(self._expected)):
            if self._stopped:
                self._requests.put(None)
                return
            self._requests.put(observation(tick, values))
            try:
                answer = next(self._responses).decision
            except (grpc.RpcError, StopIteration) as error:
                self.wrong = error
                return
            if (answer.tick, answer.status, list(answer.decision.action)) != (tick, pb.DECISION_STATUS_OK, action):
                self.wrong = answer
            self.answers += 1

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped = True
        self._thread.join(PATIENCE_S)
        self._channel.close()
        assert self.wrong is None

    def answered(self, times=20):
        """Waits for that many more answers."""
        enough = self.answers + times
        eventually(lambda: self.answers >= enough or self.wrong is not None, "the witness was answered")
        assert self.wrong is None


def footprint(running):
    """What the server holds on behalf of its clients."""
    batchers = [policy.batcher for policy in running.core.policies.values()]
    return {
        "sessions": sum(running.metric("dst_control_sessions", policy=name) for name in running.core.policies),
        "counted": [(batcher.sessions, batcher.promises, len(batcher.line)) for batcher in batchers],
        "promised": running.core.admission.share,
        "tasks": len(asyncio.all_tasks(running._loop)),
        "threads": threading.active_count(),
        "files": len(list(Path("/proc/self/fd").iterdir())),
    }


@contextlib.contextmanager
def undisturbed(running, runtime):
    """A witness is answered all the while, and in the end everything is as it was."""
    with Witness(running.grpc, runtime) as witness:
        with Robot(running.grpc) as first:  # what is made once is made now
            first.observe(0)
            first.answer()
        eventually(lambda: running.metric("dst_control_sessions") == 1, "the witness is alone")
        witness.answered()
        before = footprint(running)
        yield witness
        witness.answered()
        eventually(lambda: _no_more(footprint(running), before), f"{footprint(running)} fell to {before}")


def _no_more(now, before):
    return all(now[name] <= before[name] for name in before)


@pytest.fixture(scope="module")
def runtime(loaded):
    """The policy itself, beside the server."""
    return Runtime(loaded, "cpu")


def kept_sending(address, sent, stopped, **opening):
    """A stream whose client sends for as long as it is allowed to; `sent` counts."""

    def requests():
        yield pb.ControlRequest(open=pb.OpenSession(**opening))
        for tick in itertools.count():
            if stopped.is_set():
                return
            sent.append(tick)
            yield observation(tick)

    # Without its probing a client takes in little that it does not read.
    channel = grpc.insecure_channel(address, [*OWN_CONNECTION, ("grpc.http2.bdp_probe", 0)])
    return channel, PolicyServiceStub(channel).Control(requests(), timeout=LONG_S)


def test_a_client_that_never_reads_stops_being_read(loaded, runtime):
    with Running.of(loaded) as running, undisturbed(running, runtime) as witness:
        sent, stopped = [], threading.Event()
        channel, stream = kept_sending(running.grpc, sent, stopped, robot="deaf", detail=pb.DETAIL_SAMPLES)

        def stuck():
            before = len(sent)
            witness.answered(100)
            return before == len(sent) > 0

        eventually(stuck, "the client can send no more")
        stopped.set()
        stream.cancel()
        channel.close()


def test_a_client_that_never_stops_sending_is_answered_in_order_and_nobody_waits_for_it(loaded, runtime):
    with Running.of(loaded) as running, undisturbed(running, runtime) as witness:
        sent, stopped, answered = [], threading.Event(), []
        channel, stream = kept_sending(running.grpc, sent, stopped, robot="eager")
        assert next(stream).opened.session
        reading = threading.Thread(target=lambda: answered.extend(answer.decision.tick for answer in stream))
        reading.start()
        witness.answered(300)
        stopped.set()
        reading.join(PATIENCE_S)
        channel.close()
        assert answered == sent  # all, each once, in order


VANISHING = """
import itertools, sys, grpc
from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub

def requests():
    yield pb.ControlRequest(open=pb.OpenSession(robot="mortal", rate_hz=5.0, latency_ms=200.0))
    for tick in itertools.count():
        yield pb.ControlRequest(observation=pb.Observation(tick=tick, validity_ns=10**10, values=[0.1, 0.2, 0.3]))

stream = PolicyServiceStub(grpc.insecure_channel(sys.argv[1])).Control(requests())
next(stream)
print("opened", flush=True)
for _ in stream:
    pass
"""


@contextlib.contextmanager
def client_process(address):
    """A robot in a process of its own, which has a session with a promise and keeps sending."""
    arguments = [sys.executable, "-c", VANISHING, address]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "opened\n"
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        process.stdout.close()


def test_a_client_whose_process_is_killed_is_forgotten(loaded, runtime):
    with Running.of(loaded) as running, undisturbed(running, runtime) as witness:
        with client_process(running.grpc):
            assert running.core.admission.share > 0
            witness.answered()
        eventually(lambda: running.core.admission.share == 0, "its promise was taken back")


@pytest.mark.slow
def test_a_client_whose_process_hangs_is_forgotten(loaded, runtime):
    """Its connection stays open, so only the keepalive finds out."""
    with (
        Running.of(loaded) as running,
        undisturbed(running, runtime) as witness,
        client_process(running.grpc) as client,
    ):
        client.send_signal(signal.SIGSTOP)
        eventually(lambda: running.core.admission.share == 0, "its promise was taken back")
        witness.answered()


def leave(robot, way):
    if way == 0:
        robot.half_close()
        assert list(robot.responses) == []
    elif way == 1:
        robot.responses.cancel()
    elif way == 2:  # with an answer under way
        robot.observe(1)
    robot.half_close()
    robot.channel.close()


def test_a_thousand_connects_and_disconnects_leave_nothing_behind(loaded, runtime):
    with Running.of(loaded) as running, undisturbed(running, runtime):
        for number in range(1000):
            robot = Robot(running.grpc, robot=f"guest-{number}", rate_hz=1.0, latency_ms=500.0)
            robot.observe(0)
            assert robot.answer().status == pb.DECISION_STATUS_OK
            leave(robot, number % 4)


def test_clients_that_leave_in_the_middle_of_anything_leave_nothing_behind(loaded, runtime):
    with Running.of(loaded) as running, undisturbed(running, runtime) as witness:
        host, port = running.http.removeprefix("http://").split(":")
        post = b"POST /v1/policies/reacher/act HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{"
        beginnings = [b"", b"POST /v1/pol", post, b"GET /v1/live HTTP/1.1\r\nHost: x\r\n\r\n"]
        connections = [socket.create_connection((host, int(port)), timeout=PATIENCE_S) for _ in beginnings]
        for connection, beginning in zip(connections, beginnings, strict=True):
            connection.sendall(beginning)
        assert connections[-1].recv(12) == b"HTTP/1.1 200"
        grpc_connection = socket.create_connection(tuple(running.grpc.split(":")), timeout=PATIENCE_S)
        grpc_connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100)
        channel = grpc.insecure_channel(running.grpc, OWN_CONNECTION)
        unsaid = queue.SimpleQueue()
        unopened = PolicyServiceStub(channel).Control(iter(unsaid.get, None), timeout=LONG_S)
        streams = GRPCInferenceServiceStub(channel).ModelStreamInfer(_infers(), timeout=LONG_S)
        assert next(streams).error_message == ""
        witness.answered()
        for connection in (*connections, grpc_connection):
            connection.close()
        unopened.cancel()
        unsaid.put(None)  # the thread of the client that sends ends with it
        streams.cancel()
        channel.close()


def _infers():
    request = oip.ModelInferRequest(model_name="reacher", raw_input_contents=[np.float32(OBSERVATION).tobytes()])
    request.inputs.add(name="observation", datatype="FP32", shape=[1, 3])
    return itertools.repeat(request, 10_000)


def until_the_end(ask, answered):
    """Asks again and again until the server is gone; how it ended."""
    try:
        while True:
            ask()
            answered.append(1)
    except (grpc.RpcError, httpx.HTTPError, StopIteration) as end:
        return end


def test_sigterm_under_load_answers_what_was_begun_and_tells_everyone_else(bundle, runtime):
    expected = decided(runtime, OBSERVATION)
    with Process(bundle, *ANYWHERE) as server, contextlib.ExitStack() as closing:
        channel = closing.enter_context(grpc.insecure_channel(server.grpc))
        robots = [closing.enter_context(Robot(server.grpc)) for _ in range(4)]
        client = closing.enter_context(httpx.Client(base_url=server.http, timeout=PATIENCE_S))

        def tick(robot, ticks):
            number = next(ticks)
            robot.observe(number, OBSERVATION)
            answer = robot.answer()
            assert (answer.tick, answer.status) == (number, pb.DECISION_STATUS_OK)
            assert list(answer.decision.action) == expected

        def act():
            request = pb.ActRequest(observation=OBSERVATION)
            response = PolicyServiceStub(channel).Act(request, timeout=PATIENCE_S)
            assert list(response.decision.action) == expected

        def post():
            reply = client.post("/v1/policies/reacher/act", json={"observation": OBSERVATION})
            if reply.status_code == 503:
                assert reply.json() == {"error": "server is shutting down"}
                raise httpx.HTTPError("refused")
            assert reply.json()["action"] == expected

        asks = [functools.partial(tick, robot, itertools.count()) for robot in robots]
        asks += [act, act, post]
        counts = [[] for _ in asks]
        with ThreadPoolExecutor(len(asks)) as pool:
            ends = [pool.submit(until_the_end, ask, count) for ask, count in zip(asks, counts, strict=True)]
            eventually(lambda: all(len(count) >= 20 for count in counts), "all are being answered")
            assert server.stop() == 0
            for end in (ends[index].result(PATIENCE_S) for index in range(len(robots) + 2)):
                assert end.code() is grpc.StatusCode.UNAVAILABLE, end
            # A session is told why; a call may also find that nobody listens any more.
            assert {end.result().details() for end in ends[: len(robots)]} == {"server is shutting down"}
            assert isinstance(ends[-1].result(PATIENCE_S), httpx.HTTPError)
        assert "Traceback" not in server.stderr
        assert "never retrieved" not in server.stderr


def test_a_request_that_has_not_wholly_come_does_not_hold_up_the_end(bundle):
    with Process(bundle, *ANYWHERE) as server:
        host, port = server.http.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            connection.sendall(
                b"POST /v1/policies/reacher/act HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n"
            )
            assert connection.recv(12) == b"HTTP/1.1 100"  # its body is waited for
            connection.sendall(b"{")
            assert server.stop() == 0
    assert "graceful shutdown exceeded" not in server.stderr
    assert "Traceback" not in server.stderr


def held(process):
    """Memory in MB, threads and files of a server."""
    return process.memory_info().rss / 1e6, process.num_threads(), process.num_fds()


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.slow)])
def test_guests_who_come_and_go_and_one_who_never_stops_sending_cost_no_memory(bundle, rounds):
    """What is kept for a while, as the last minute of each of so many sessions, is full after the first of them."""
    with Process(bundle, *ANYWHERE) as server:
        process = psutil.Process(server.process.pid)

        def guests(times):
            sent, stopped = [], threading.Event()
            channel, eager = kept_sending(server.grpc, sent, stopped, robot="eager")
            reading = threading.Thread(target=lambda: list(eager))
            reading.start()
            for number in range(times):
                robot = Robot(server.grpc, rate_hz=1.0, latency_ms=500.0)
                robot.observe(0)
                assert robot.answer().status == pb.DECISION_STATUS_OK
                leave(robot, number % 4)
            stopped.set()
            reading.join(PATIENCE_S)
            channel.close()

        guests(MAX_SESSIONS + 10)
        memory, threads, files = held(process)
        for _ in range(rounds):
            guests(MAX_SESSIONS)
        eventually(lambda: held(process)[2] <= files, "all connections were closed")
        assert held(process)[0] <= memory + 20
        assert held(process)[1] <= threads + 4  # gRPC keeps a few for a while
