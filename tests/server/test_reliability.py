"""Clients that misbehave disturb nobody and leave nothing behind."""

import asyncio
import contextlib
import itertools
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos import open_inference_pb2 as oip
from protos import policy_pb2 as pb
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from protos.policy_pb2_grpc import PolicyServiceStub
from server.runtime import Runtime
from tests.server.process import ROOT
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
        "counted": [(batcher.sessions, batcher.promises, len(batcher._waiting)) for batcher in batchers],
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

    channel = grpc.insecure_channel(address, OWN_CONNECTION)
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


@pytest.mark.parametrize("times", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_connects_and_disconnects_leave_nothing_behind(loaded, runtime, times):
    with Running.of(loaded) as running, undisturbed(running, runtime):
        for number in range(times):
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
