import gc
import re
import threading
import time
import weakref

import grpc
import numpy as np
import pytest

from protos import policy_pb2 as pb
from sim_bridge.control_session import Outcome, _Outbox
from sim_bridge.errors import RequestRefusedError, ServerOverloadedError, ServerUnreachableError
from tests.sim_bridge.scripted_policy import decision_for, wait_until, well_behaved

OBSERVATION = np.array([0.1, 0.2, 0.3])
AMPLE_NS = 5_000_000_000
SHORT_NS = 30_000_000


@pytest.fixture
def client(server, connect):
    with connect(server.address) as client:
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


def test_observation_that_is_late_already_is_sent_as_one_that_expires(server, client):
    with client.control() as session:
        decide(session, 1, -1)
        wait_until(lambda: server.policy.observations)
    assert server.policy.observations[0].validity_ns > 0, "0 is refused as no time at all"


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
        assert re.fullmatch(r"no decision within \d+\.\d ms", late.problem)
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
        (pb.DECISION_STATUS_OVERLOADED, Outcome.OVERLOADED),
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


def test_sessions_that_were_closed_are_not_kept(server, client):
    closed = []
    for tick in range(3):
        with client.control() as session:
            decide(session, tick + 1)
        closed.append(weakref.ref(getattr(session, "_session", session)))
        del session
    gc.collect()
    assert [reference() for reference in closed] == [None] * 3


def test_only_the_newest_observation_waits_for_a_slow_server(server, client):
    """So large that few fit into what the network itself holds."""
    release = threading.Event()
    large = np.ones(50_000)

    def slow(policy, observation):
        release.wait(30)
        yield decision_for(observation, [0.0])

    server.policy.answer = slow
    with client.control() as session:
        for tick in range(1, 100):
            decide(session, tick, 5_000_000, large)
        release.set()
        assert decide(session, 100, 30_000_000_000, large).decision.tick == 100
    ticks = [observation.tick for observation in server.policy.observations]
    assert ticks == sorted(ticks)
    assert len(ticks) < 50


def test_policy_unknown_to_the_server_is_refused_in_its_words(server, client):
    server.policy.refuse_open = (grpc.StatusCode.FAILED_PRECONDITION, "the contract differs: 'knee' is missing")
    with pytest.raises(RequestRefusedError, match="FAILED_PRECONDITION: the contract differs: 'knee' is missing"):
        client.control(contract="x")
    with pytest.raises(RequestRefusedError, match="NOT_FOUND: policy must be one of scripted, got 'other'"):
        client.describe("other")


def test_session_that_is_never_confirmed_is_given_up(server, connect):
    server.policy.confirm_open = False
    with (
        connect(server.address, call_timeout_s=0.1) as client,
        pytest.raises(ServerUnreachableError, match="did not open the session in time"),
    ):
        client.control()


def test_unreachable_server_is_named_with_the_cure(connect):
    with (
        connect("127.0.0.1:1") as client,
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


def test_overloaded_decision_says_when_to_ask_again(server, client):
    def shed(policy, observation):
        decision = decision_for(observation, [], pb.DECISION_STATUS_OVERLOADED, "too many robots")
        decision.retry_after_ms = 40
        yield decision

    with client.control() as session:
        assert decide(session, 1).retry_after_ms == 0
        server.policy.answer = shed
        reply = decide(session, 2)
    assert (reply.outcome, reply.problem, reply.retry_after_ms) == (Outcome.OVERLOADED, "too many robots", 40)


def test_granted_promise_is_readable_and_kept_over_a_reconnection(server, client):
    with client.control() as session:
        assert session.promise is None
    with client.control(rate_hz=100.0, latency_ms=5.0) as session:
        assert (session.promise.rate_hz, session.promise.latency_ms) == (100.0, 5.0)
        server.die()
        wait_until(lambda: not session.connected)
        server.start()
        wait_until(lambda: session.connected)
    assert [(opened.rate_hz, opened.latency_ms) for opened in server.policy.opened[1:]] == [(100.0, 5.0)] * 2


def test_refused_promise_names_what_was_asked_and_what_to_do(server, client):
    server.policy.refuse_open = (grpc.StatusCode.RESOURCE_EXHAUSTED, "a decision costs 9 ms")
    server.policy.retry_after_ms = 250
    cure = r"costs 9 ms; try again in 250 ms; or lower rate_hz, now 100, raise latency_ms, now 5, or leave both out"
    with pytest.raises(ServerOverloadedError, match=cure) as refusal:
        client.control(rate_hz=100.0, latency_ms=5.0)
    assert refusal.value.retry_after_ms == 250


def test_session_that_the_server_opens_without_the_promise_is_refused(server, client):
    server.policy.keeps_promises = False
    with pytest.raises(RequestRefusedError, match="must grant 100 Hz within 5 ms, got 0 Hz within 0 ms; update the"):
        client.control(rate_hz=100.0, latency_ms=5.0)


def test_selection_is_sent_and_what_was_selected_comes_back(server, client):
    def select(policy, observation):
        decision = decision_for(observation, [0.5])
        decision.decision.selected.CopyFrom(
            pb.Selected(rule=pb.RULE_BEST_CVAR, candidates=8, index=observation.tick, gain=0.25)
        )
        yield decision

    server.policy.answer = select
    selection = pb.Selection(rule=pb.RULE_BEST_CVAR, candidates=8, spread=0.2)
    client.act(OBSERVATION, selection=selection)
    with client.control(selection=selection) as session:
        selected = decide(session, 3).decision.decision.selected
    assert (selected.rule, selected.index, selected.gain) == (pb.RULE_BEST_CVAR, 3, 0.25)
    assert server.policy.requests[0].selection == server.policy.opened[0].selection == selection


def test_assessments_come_in_the_order_of_the_candidates(server, client):
    candidates = np.linspace(-2, 2, 7)[:, None]
    answer = client.assess(OBSERVATION, candidates, detail=pb.DETAIL_SAMPLES)
    np.testing.assert_allclose([each.summary.return_mean for each in answer.assessments], candidates[:, 0], rtol=1e-6)
    assert server.policy.requests[0].detail == pb.DETAIL_SAMPLES
    np.testing.assert_array_equal(server.policy.requests[0].observation, OBSERVATION.astype(np.float32))


def test_shapes_that_mean_nothing_are_refused_before_they_are_sent(server, client):
    with pytest.raises(ValueError, match=r"candidates must have shape .*, got \(1,\); send one action as candidates"):
        client.assess(OBSERVATION, np.zeros(1))
    with pytest.raises(ValueError, match=r"observation must have shape .*, got \(1, 3\)"):
        client.act(OBSERVATION[None])
    assert server.policy.requests == []


def test_tick_that_is_not_newer_is_refused_so_that_no_old_decision_can_answer_it(server, client):
    with client.control() as session:
        decide(session, 5)
        for tick in (5, 4):
            with pytest.raises(ValueError, match=f"tick must be greater than 5, got {tick}"):
                decide(session, tick)
        assert decide(session, 6).outcome is Outcome.OK


def test_of_what_waits_to_be_sent_the_newest_wins():
    outbox = _Outbox(request(0))
    assert next(outbox) == request(0)
    for tick in (1, 2, 3):
        outbox.put(request(tick))
    assert next(outbox) == request(3)


def test_nothing_is_sent_after_the_end_however_late_a_tick_is_put():
    outbox = _Outbox(request(0))
    outbox.close()
    outbox.put(request(1))
    with pytest.raises(StopIteration):
        next(outbox)


def request(tick):
    return pb.ControlRequest(observation=pb.Observation(tick=tick))
