import threading
import time

import grpc
import numpy as np
import pytest

from protos import policy_pb2 as pb
from sim_bridge.client import PolicyClient
from sim_bridge.control_session import Outcome
from sim_bridge.errors import RequestRefusedError, ServerUnreachableError
from tests.sim_bridge.scripted_policy import decision_for, wait_until, well_behaved

OBSERVATION = np.array([0.1, 0.2, 0.3])
AMPLE_NS = 5_000_000_000
SHORT_NS = 30_000_000


@pytest.fixture
def client(server):
    with PolicyClient(server.address) as client:
        client.connect()
        yield client


def decide(session, tick, budget_ns=AMPLE_NS, observation=OBSERVATION, status=None):
    return session.decide(
        tick=tick,
        observation=observation,
        deadline_ns=time.monotonic_ns() + budget_ns,
        status=status or pb.RobotStatus(),
    )


def test_each_tick_gets_the_decision_for_its_own_observation(server, client):
    with client.control(robot="arm", contract=server.policy.description.contract, detail=pb.DETAIL_NONE) as session:
        for tick in range(1, 20):
            observation = OBSERVATION * tick
            reply = decide(session, tick, observation=observation)
            assert reply.outcome is Outcome.OK
            assert reply.decision.tick == tick
            expected = server.policy.act(observation.astype(np.float32))
            np.testing.assert_allclose(reply.decision.decision.action, expected, rtol=1e-6)
            assert reply.round_trip_ns > 0
    opening = server.policy.opened[0]
    assert (opening.robot, opening.detail) == ("arm", pb.DETAIL_NONE)
    assert opening.contract == server.policy.description.contract


def test_observation_carries_send_time_validity_and_status(server, client):
    before = time.monotonic_ns()
    with client.control() as session:
        decide(session, 1, status=pb.RobotStatus(guard=pb.GUARD_STATE_HOLD, late_ticks=3))
    sent = server.policy.observations[0]
    assert before < sent.sent_ns < time.monotonic_ns()
    assert AMPLE_NS - 1_000_000_000 < sent.validity_ns <= AMPLE_NS
    assert (sent.status.guard, sent.status.late_ticks) == (pb.GUARD_STATE_HOLD, 3)


def test_late_reply_is_dropped_and_counted_and_never_answers_a_newer_tick(server, client):
    release = threading.Event()

    def first_answer_comes_late(policy, observation):
        if observation.tick == 1:
            release.wait(5)
        yield decision_for(observation, [0.01 * observation.tick])

    server.policy.answer = first_answer_comes_late
    with client.control() as session:
        late = decide(session, 1, SHORT_NS)
        assert late.outcome is Outcome.LATE
        assert late.problem == "no decision within 30.0 ms"
        assert late.round_trip_ns >= SHORT_NS
        release.set()
        reply = decide(session, 2)
        assert reply.outcome is Outcome.OK
        assert reply.decision.tick == 2
        assert session.stale_replies == 1


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (pb.DECISION_STATUS_SUPERSEDED, Outcome.SUPERSEDED),
        (pb.DECISION_STATUS_EXPIRED, Outcome.EXPIRED),
        (pb.DECISION_STATUS_REJECTED, Outcome.REJECTED),
        (pb.DECISION_STATUS_FAILED, Outcome.FAILED),
        (pb.DECISION_STATUS_UNSPECIFIED, Outcome.FAILED),
    ],
)
def test_server_refusals_surface_with_the_servers_reason(server, client, status, outcome):
    server.policy.answer = lambda policy, observation: iter([decision_for(observation, [], status, "because")])
    with client.control() as session:
        reply = decide(session, 1)
    assert (reply.outcome, reply.problem) == (outcome, "because")


def test_dead_server_is_lost_and_the_session_resumes_when_it_returns(server, client):
    with client.control() as session:
        assert decide(session, 1).outcome is Outcome.OK
        server.die()
        wait_until(lambda: not session.connected)
        before = time.monotonic_ns()
        reply = decide(session, 2, SHORT_NS)
        assert reply.outcome is Outcome.LOST
        assert server.address in reply.problem
        assert "reconnecting" in reply.problem
        assert time.monotonic_ns() - before >= SHORT_NS
        server.start()
        wait_until(lambda: session.connected)
        assert decide(session, 3).outcome is Outcome.OK
        assert session.reconnects == 1
        assert session.session == "s2"


def test_server_that_dies_while_a_tick_waits_is_lost_at_that_tick(server, client):
    arrived = threading.Event()

    def never(policy, observation):
        arrived.set()
        threading.Event().wait(0.5)
        yield from ()

    server.policy.answer = never
    with client.control() as session:
        killer = threading.Thread(target=lambda: (arrived.wait(5), server.die()))
        killer.start()
        assert decide(session, 1, 400_000_000).outcome is Outcome.LOST
        killer.join()


def test_server_that_stops_answering_is_given_up_and_the_stream_made_anew(server, client):
    server.policy.answer = lambda policy, observation: iter(())
    with client.control(reply_timeout_s=0.05) as session:
        tick = 0
        while session.reconnects == 0:
            tick += 1
            assert tick < 500
            assert decide(session, tick, SHORT_NS // 3).outcome in {Outcome.LATE, Outcome.LOST}
        server.policy.answer = well_behaved
        wait_until(lambda: session.connected)
        assert decide(session, tick + 1).outcome is Outcome.OK


def test_session_ends_cleanly_at_the_server(server, client):
    with client.control() as session:
        decide(session, 1)
    assert server.policy.closed_by_client.wait(5)
    assert not session.connected


def test_only_the_newest_observation_waits_for_a_slow_server(server, client):
    release = threading.Event()

    def slow(policy, observation):
        release.wait(5)
        yield decision_for(observation, [0.0])

    server.policy.answer = slow
    with client.control() as session:
        for tick in range(1, 200):
            decide(session, tick, 10_000)
        release.set()
        assert decide(session, 200).decision.tick == 200


def test_policy_unknown_to_the_server_is_refused_in_its_words(server, client):
    server.policy.refuse_open = (grpc.StatusCode.FAILED_PRECONDITION, "the contract differs: 'knee' is missing")
    with pytest.raises(RequestRefusedError, match="FAILED_PRECONDITION: the contract differs: 'knee' is missing"):
        client.control(contract="x")
    with pytest.raises(RequestRefusedError, match="NOT_FOUND: policy must be one of scripted, got 'other'"):
        client.describe("other")


def test_session_that_is_never_confirmed_is_given_up(server):
    server.policy.confirm_open = False
    with (
        PolicyClient(server.address, call_timeout_s=0.1) as client,
        pytest.raises(ServerUnreachableError, match="did not open the session in time"),
    ):
        client.control()


def test_unreachable_server_is_named_with_the_cure():
    with (
        PolicyClient("127.0.0.1:1") as client,
        pytest.raises(
            ServerUnreachableError, match=r"127\.0\.0\.1:1, got none within 0\.2 s; start it with `dst-serve"
        ),
    ):
        client.connect(timeout_s=0.2)


def test_calls_to_a_dead_server_fail_with_its_address(server, client):
    server.die()
    with pytest.raises(ServerUnreachableError, match=server.address):
        client.act(OBSERVATION)
    with pytest.raises(ServerUnreachableError, match=server.address):
        client.describe()


def test_clock_offset_between_clocks_of_one_machine_is_zero_within_its_bound(server, client):
    with client.control() as session:
        assert session.clock_offset is None
        for tick in range(1, 10):
            decide(session, tick)
        offset = session.clock_offset
    assert abs(offset.offset_ns) <= offset.error_ns
