"""Servers that really stop and come back, and networks that vanish."""

import threading
import time

import numpy as np
import onnxruntime
import pytest

from protos import policy_pb2 as pb
from sim_bridge.channel import CHANNEL_OPTIONS
from sim_bridge.clock_offset import ClockOffset
from sim_bridge.control_session import Outcome
from sim_bridge.errors import RequestRefusedError, ServerUnreachableError
from sim_bridge.exchange import FIRST_BACKOFF_S, LAST_BACKOFF_S, REFUSED_BACKOFF_S, Exchange
from sim_bridge.guard import GuardConfig
from tests.integration.conftest import ServerProcess
from tests.sim_bridge.scripted_policy import wait_until
from tests.sim_bridge.vanishing_network import VanishingNetwork

MS = 1_000_000


def decide(session, tick, observation, budget_ns):
    return session.decide(tick=tick, observation=observation, deadline_ns=time.monotonic_ns() + budget_ns)


def test_killed_server_is_back_in_the_same_session_and_every_decision_is_for_its_own_tick(bundle, connect):
    """A robot ticks on while its server is killed twice and started again on the same port."""
    actor = onnxruntime.InferenceSession(bundle / "actor.onnx", providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    observations, replies = {}, {}
    finished = threading.Event()
    server = ServerProcess(bundle)
    with connect(server.grpc) as client, client.control(robot="arm") as session:

        def tick_on():
            tick = 0
            while not finished.is_set():
                tick += 1
                observations[tick] = rng.normal(size=3)
                replies[tick] = decide(session, tick, observations[tick], 5 * MS)

        robot = threading.Thread(target=tick_on)
        robot.start()
        try:
            for reconnects in (1, 2):
                before = len(replies)
                wait_until(lambda before=before: any(answered(replies, since=before)))
                server.process.kill()
                server.process.communicate()
                wait_until(lambda: not session.connected)
                server = ServerProcess(bundle, "--grpc", server.grpc)
                wait_until(lambda reconnects=reconnects: session.reconnects == reconnects and session.connected)
            before = len(replies)
            wait_until(lambda: any(answered(replies, since=before)))
            assert client.act(observations[1], detail=pb.DETAIL_NONE).decision.action
        finally:
            finished.set()
            robot.join()
    assert server.stop() == 0
    assert {reply.outcome for reply in replies.values()} <= {
        Outcome.OK,
        Outcome.LATE,
        Outcome.LOST,
        Outcome.EXPIRED,
        Outcome.SUPERSEDED,
    }
    for tick in answered(replies):
        expected = actor.run(["action"], {"observation": observations[tick][None].astype(np.float32)})[0][0]
        np.testing.assert_allclose(replies[tick].decision.decision.action, expected, rtol=1e-4, atol=1e-6)


def answered(replies, since=0):
    return [tick for tick, reply in list(replies.items())[since:] if reply.outcome is Outcome.OK]


def test_connection_that_vanished_without_a_word_is_not_used_again(server, connect, monkeypatch):
    """Even where gRPC itself would not notice."""
    options = tuple(option for option in CHANNEL_OPTIONS if "keepalive" not in option[0] and "ping" not in option[0])
    monkeypatch.setattr("sim_bridge.channel.CHANNEL_OPTIONS", options)
    network = VanishingNetwork(server.address)
    observation = np.array([0.1, 0.2, 0.3])
    try:
        with connect(network.address) as client, client.control(reply_timeout_s=0.1) as session:
            assert decide(session, 1, observation, 5_000 * MS).outcome is Outcome.OK
            network.vanish()
            tick = 1
            while session.reconnects == 0:
                tick += 1
                assert tick < 1000
                assert decide(session, tick, observation, 10 * MS).outcome in {Outcome.LATE, Outcome.LOST}
            assert decide(session, tick + 1, observation, 5_000 * MS).outcome is Outcome.OK
    finally:
        network.close()


def test_calls_outlive_a_connection_that_vanished(server, connect):
    """Without keepalive they would fail for as long as the kernel sends again: a quarter of an hour."""
    network = VanishingNetwork(server.address)
    try:
        with connect(network.address, call_timeout_s=1.0) as client:
            client.describe()
            network.vanish()
            with pytest.raises(ServerUnreachableError):
                client.describe()

            def answers():
                try:
                    client.describe()
                except ServerUnreachableError:
                    return False
                return True

            wait_until(answers, timeout_s=60)
    finally:
        network.close()


@pytest.mark.parametrize(
    ("failure", "longest"),
    [(ServerUnreachableError("away"), LAST_BACKOFF_S), (RequestRefusedError("no"), REFUSED_BACKOFF_S)],
)
def test_pause_between_attempts_stays_within_a_second_however_long_the_server_is_away(failure, longest):
    exchange = Exchange(pb.OpenSession(), "arm:1", reply_timeout_s=1.0)
    pauses = [exchange.lose(failure) for _ in range(100)]
    assert min(pauses) > 0
    assert max(pauses) == longest <= 1.0
    exchange.confirm(pb.SessionOpened(session="s"))
    assert exchange.lose(failure) == FIRST_BACKOFF_S


def test_session_that_the_server_ends_for_another_version_is_open_again_before_the_guard_stops_the_robot():
    exchange = Exchange(pb.OpenSession(), "arm:1", reply_timeout_s=1.0)
    exchange.confirm(pb.SessionOpened(session="s"))
    assert exchange.lose(RequestRefusedError("replaced")) < GuardConfig().hold_timeout_s / 2


def test_session_comes_back_on_its_own_policy_though_none_was_named(server, connect):
    with connect(server.address) as client, client.control() as session:
        server.die()
        wait_until(lambda: not session.connected)
        server.start()
        wait_until(lambda: session.connected)
    assert [opening.policy for opening in server.policy.opened] == ["", "scripted"]


def test_clock_of_a_server_that_came_back_is_measured_anew():
    """Its host may have been started again."""
    now = [1_000 * MS]
    exchange = Exchange(pb.OpenSession(), "arm:1", reply_timeout_s=1.0, now_ns=lambda: now[0])
    for tick, ahead in ((1, 5_000_000 * MS), (2, -300 * MS)):
        exchange.confirm(pb.SessionOpened(session="s"))
        exchange.ask(tick=tick, observation=np.zeros(3), deadline_ns=now[0] + MS, status=None)
        received = now[0] + tick * MS + ahead
        now[0] += 2 * tick * MS
        exchange.answer(pb.ControlDecision(tick=tick, received_ns=received, replied_ns=received))
        assert exchange.clock_offset.best == ClockOffset(offset_ns=ahead, error_ns=tick * MS)
