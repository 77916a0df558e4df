import contextlib
import json
import os
import signal
import socket
import threading
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import policy_pb2 as pb
from server.config import Address, ServeConfig
from server.errors import AddressError
from server.listen import shared_socket
from tests.server.process import ANYWHERE, Process, refused
from tests.server.running import PATIENCE_S, Robot, eventually
from tests.server.test_telemetry import samples

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


class Workers(Process):
    """A server of two workers."""

    def __init__(self, bundle, *arguments):
        super().__init__(bundle, *ANYWHERE, "--workers", 2, "--log-format", "json", *arguments)

    def pid(self, worker):
        """Of the process that is that worker now."""
        started = [line["message"] for line in self.logged() if line["message"].startswith(f"worker {worker} is ready")]
        return int(started[-1].rpartition(" ")[2])

    def worker_of(self, robot):
        """The worker that the robot's stream landed in; its log says so."""

        def workers():
            session = robot.opened.session
            return [line["worker"] for line in self.logged() if f"session {session} opened" in line["message"]]

        eventually(lambda: bool(workers()), "the session was logged")
        return int(workers()[0])

    def ready(self):
        return httpx.get(f"{self.http}/readyz", timeout=PATIENCE_S)

    def metrics(self):
        return samples(Exposition(httpx.get(f"{self.http}/metrics", timeout=PATIENCE_S).content))

    def shown(self):
        """One event of the page."""
        with httpx.stream("GET", f"{self.http}/v1/live", timeout=PATIENCE_S) as reply:
            line = next(line for line in reply.iter_lines() if line.startswith("data: "))
        return json.loads(line.removeprefix("data: "))


class Exposition:
    def __init__(self, text):
        self._text = text

    def exposition(self):
        return self._text


@contextlib.contextmanager
def spread_robots(server, **opening):
    """Robots in both workers; which one a connection lands in is the kernel's choice."""
    with contextlib.ExitStack() as stack:
        robots = {0: [], 1: []}
        for number in range(64):
            robot = stack.enter_context(Robot(server.grpc, robot=f"arm{number}", **opening))
            robots[server.worker_of(robot)].append(robot)
            if all(robots.values()):
                yield robots
                return
        pytest.fail("64 connections landed in one worker")


def decide(robot, tick):
    robot.observe(tick)
    assert robot.answer().status == pb.DECISION_STATUS_OK


def health(channel, policy):
    stub = health_pb2_grpc.HealthStub(channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=policy), timeout=PATIENCE_S).status


def test_robots_of_all_workers_are_on_the_page_and_in_the_metrics(bundle):
    with Workers(bundle) as server, spread_robots(server, rate_hz=1.0, latency_ms=500.0) as robots:
        all_robots = [*robots[0], *robots[1]]
        for robot in all_robots:
            decide(robot, 1)
            decide(robot, 2)
        count = len(all_robots)
        eventually(
            lambda: server.metrics()["dst_decisions_total", "control", "ok", "reacher"] == 2 * count, "all were counted"
        )
        shown = server.shown()
        assert sorted(robot["session"] for robot in shown["robots"]) == sorted(r.opened.session for r in all_robots)
        assert all([sample["tick"] for sample in robot["samples"]] == [1, 2] for robot in shown["robots"])
        assert shown["server"]["grpc"] == server.grpc
        metrics = server.metrics()
        assert metrics["dst_control_sessions", "reacher"] == count
        assert metrics[("dst_workers_ready",)] == 2
        act = httpx.post(f"{server.http}/v1/policies/reacher/act", json={"observation": [0.1, 0.2, 0.3]})
        assert act.status_code == 200
        assert server.metrics()["dst_decisions_total", "http", "ok", "reacher"] == 1
        loads = [metrics["dst_granted_load", "reacher"]]
        for leaving in robots.values():
            for robot in leaving:
                robot.half_close()
            count -= len(leaving)
            eventually(
                lambda left=count: server.metrics()["dst_control_sessions", "reacher"] == left, "these sessions ended"
            )
            loads.append(server.metrics()["dst_granted_load", "reacher"])
        assert loads[0] > loads[1] > loads[2] == 0


def test_killed_worker_comes_back_while_the_others_go_on(bundle):
    with Workers(bundle) as server, spread_robots(server) as robots:
        victim, survivor = robots[0][0], robots[1][0]
        for tick in (1, 2, 3):
            decide(victim, tick)
            decide(survivor, tick)
        eventually(lambda: server.metrics()["dst_decisions_total", "control", "ok", "reacher"] == 6, "all were counted")
        assert health(survivor.channel, "reacher") == SERVING
        os.kill(server.pid(0), signal.SIGKILL)
        with pytest.raises(grpc.RpcError) as end:
            victim.answer()
        assert end.value.code() is grpc.StatusCode.UNAVAILABLE
        eventually(lambda: health(survivor.channel, "reacher") == NOT_SERVING, "the whole server is not ready")
        reply = server.ready()
        assert (reply.status_code, reply.json()) == (503, {"error": "1 of 2 workers are ready"})
        decide(survivor, 4)
        eventually(lambda: server.ready().status_code == 200, "the worker came back")
        eventually(lambda: health(survivor.channel, "reacher") == SERVING, "the whole server is ready again")
        decide(survivor, 5)
        metrics = server.metrics()
        assert metrics["dst_decisions_total", "control", "ok", "reacher"] == 8
        assert metrics["dst_control_sessions", "reacher"] == len(robots[1])
        assert metrics[("dst_worker_restarts_total",)] == 1
        assert [robot["session"] for robot in server.shown()["robots"]] == [r.opened.session for r in robots[1]]
        with spread_robots(server) as anew:
            decide(anew[0][0], 1)
        assert server.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_under_load_finishes_in_every_worker_what_was_begun(bundle, number):
    with Workers(bundle) as server, spread_robots(server) as robots:
        loads = [Load(robot) for each in robots.values() for robot in each]
        for load in loads:
            load.half.wait(PATIENCE_S)
        assert server.stop(number) == 0
        for load in loads:
            load.join()
            assert load.end.code() is grpc.StatusCode.UNAVAILABLE
            assert load.end.details() == "server is shutting down"
            assert load.answered == list(range(1, len(load.answered) + 1))
            assert set(load.statuses) <= {pb.DECISION_STATUS_OK, pb.DECISION_STATUS_SUPERSEDED}
        assert not any("exception" in line or line["level"] == "error" for line in server.logged())


class Load:
    """A robot that observes as fast as it is answered, until the server ends its session."""

    def __init__(self, robot):
        self.robot, self.half = robot, threading.Event()
        self.answered, self.statuses = [], []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        tick = 0
        try:
            while True:
                tick += 1
                self.robot.observe(tick)
                answer = self.robot.answer()
                self.answered.append(answer.tick)
                self.statuses.append(answer.status)
                if tick == 50:
                    self.half.set()
        except grpc.RpcError as end:
            self.end = end

    def join(self):
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def test_workers_end_with_the_process_in_front(bundle):
    with Workers(bundle) as server:
        workers = [server.pid(0), server.pid(1)]
        os.kill(server.process.pid, signal.SIGKILL)
        try:
            eventually(lambda: not any(map(alive, workers)), "no orphan is left")
        finally:
            for pid in filter(alive, workers):
                os.kill(pid, signal.SIGKILL)
            server.wait()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_workers_that_die_again_and_again_are_given_up(bundle):
    with Workers(bundle) as server:
        killed = set()
        while server.process.poll() is None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for pid in children(server.process.pid) - killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
        assert server.wait() == 2
        last = server.stderr.splitlines()[-1]
        assert last.startswith("dst-serve: worker ")
        assert "died 5 times soon after its start, at last because signal 9 ended it" in last


def children(pid):
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def test_bundle_that_workers_refuse_is_refused_in_one_line(edited):
    (edited / "policy.onnx").write_bytes((edited / "policy.onnx").read_bytes()[:-10])
    text = refused(edited, *ANYWHERE, "--workers", 2)
    assert text.startswith("dst-serve: bundle refused: ")
    assert text.count("\n") == 1


def test_port_of_workers_is_not_shared_with_another_server(bundle):
    with Workers(bundle) as server:
        for workers in (1, 2):
            text = refused(bundle, "--grpc", server.grpc, "--http", "127.0.0.1:0", "--workers", workers)
            assert f"--grpc {server.grpc}: Address already in use" in text


def test_system_that_cannot_share_a_port_is_told_so(monkeypatch):
    monkeypatch.delattr(socket, "SO_REUSEPORT")
    with pytest.raises(AddressError, match=r"--workers above 1 needs .*serve with --workers 1"):
        shared_socket(Address(host="127.0.0.1"), "--grpc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": 0}, "workers must lie between 1 and"),
        ({"workers": 2, "grpc": "unix:/tmp/x"}, "need a port to share"),
    ],
)
def test_number_of_workers_that_cannot_serve_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ServeConfig(bundles=(Path("x"),), **settings)
