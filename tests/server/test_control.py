import grpc
import numpy as np
import pytest

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from server.core import Core
from server.runtime import Runtime
from server.served_policy import ServedPolicy
from tests.server.running import PATIENCE_S, SECOND, FakeClock, Robot, Running, decided, eventually


def late(ticks):
    """A report by which the test learns, from the metrics, that an observation has arrived."""
    return pb.RobotStatus(late_ticks=ticks)


def wait_until_reported(running, ticks):
    eventually(
        lambda: running.metric("dst_robot_late_ticks_total", policy="reacher") == ticks, f"{ticks} late ticks reported"
    )


def test_each_observation_is_answered_with_its_tick_and_times(running, loaded):
    runtime = Runtime(loaded, "cpu")
    with Robot(running.grpc, robot="arm") as robot:
        assert robot.opened.session.startswith("arm-")
        assert robot.opened.description.policy_version == loaded.manifest.version
        for tick, values in enumerate(np.random.default_rng(1).normal(size=(5, 3)).tolist()):
            robot.observe(tick * 3, values, sent_ns=500 + tick, validity_ns=2 * SECOND)
            answer = robot.answer()
            assert answer.status == pb.DECISION_STATUS_OK
            assert answer.tick == tick * 3
            assert list(answer.decision.action) == decided(runtime, values)
            assert (answer.sent_ns, answer.valid_until_ns) == (500 + tick, 500 + tick + 2 * SECOND)
            assert answer.queue_ns >= 0
            assert answer.received_ns + answer.queue_ns + answer.inference_ns <= answer.replied_ns
            assert answer.policy_version == loaded.manifest.version
            assert len(answer.decision.summary.return_quantiles_raw) == 3
            assert not answer.decision.HasField("samples")


def test_session_without_detail_gets_the_action_alone(running):
    with Robot(running.grpc, detail=pb.DETAIL_NONE) as robot:
        robot.observe(0)
        decision = robot.answer().decision
        assert len(decision.action) == 2
        assert not decision.HasField("summary")


def test_bad_observation_is_rejected_and_the_stream_goes_on(running):
    with Robot(running.grpc) as robot:
        for tick, values, message in (
            (1, [0.0, 1.0], "expects 'temperature' at index 2"),
            (2, [0.0, np.nan, 0.0], "'velocity' at index 1"),
            (2, [0.0, 0.0, 0.0], "tick must be greater than 2, got 2"),
        ):
            robot.observe(tick, values)
            answer = robot.answer()
            assert (answer.status, answer.tick) == (pb.DECISION_STATUS_REJECTED, tick)
            assert message in answer.error
            assert not answer.HasField("decision")
        robot.observe(3, validity_ns=0)
        assert "validity_ns must be positive" in robot.answer().error
        robot.observe(4, sent_ns=2**63 - 1)
        assert "must fit 64 bits" in robot.answer().error
        robot.observe(5)
        assert robot.answer().status == pb.DECISION_STATUS_OK


@pytest.mark.parametrize("invalid_last", [False, True])
def test_latest_observation_wins(gated, invalid_last):
    with Running(Core([ServedPolicy(gated, inline_below_s=0.0)])) as running, Robot(running.grpc) as robot:
        gated.armed = True
        robot.observe(1)
        gated.wait_until_entered()
        robot.observe(2)
        robot.observe(3)
        robot.observe(4, [0.5, 0.5, 0.5], status=late(1))
        if invalid_last:
            robot.observe(5, [0.0], status=late(2))
        wait_until_reported(running, 2 if invalid_last else 1)
        gated.permitted.release(9)
        answers = [robot.answer() for _ in range(5 if invalid_last else 4)]
        assert [(answer.tick, answer.status) for answer in answers[:4]] == [
            (1, pb.DECISION_STATUS_OK),
            (2, pb.DECISION_STATUS_SUPERSEDED),
            (3, pb.DECISION_STATUS_SUPERSEDED),
            (4, pb.DECISION_STATUS_OK),
        ]
        # A bad observation does not take a good one's place.
        assert [answer.status for answer in answers[4:]] == [pb.DECISION_STATUS_REJECTED] * invalid_last
        assert list(answers[3].decision.action) == decided(gated, [0.5, 0.5, 0.5])
        assert running.metric("dst_decisions_total", status="superseded") == 2
        assert gated.entered.acquire(blocking=False)
        assert gated.entered.acquire(blocking=False)  # by this test's own call
        assert not gated.entered.acquire(blocking=False), "a superseded observation was computed"


def test_observation_that_expired_while_it_waited_is_not_computed(gated):
    clock = FakeClock()
    core = Core([ServedPolicy(gated, inline_below_s=0.0, clock=clock)], clock=clock)
    with Running(core) as running, Robot(running.grpc) as first, Robot(running.grpc) as second:
        gated.armed = True
        first.observe(1)
        gated.wait_until_entered()
        # The robot's own clock says nothing here: the budget counts from receipt.
        second.observe(1, sent_ns=10**15, validity_ns=SECOND // 10, status=late(1))
        wait_until_reported(running, 1)
        clock.now += SECOND // 10
        gated.permitted.release()
        assert first.answer().status == pb.DECISION_STATUS_OK
        answer = second.answer()
        assert (answer.tick, answer.status) == (1, pb.DECISION_STATUS_EXPIRED)
        assert "expired" in answer.error
        assert not gated.entered.acquire(blocking=False)
        assert running.metric("dst_decisions_total", status="expired", method="control") == 1


def test_sessions_are_isolated(loaded):
    runtime = Runtime(loaded, "cpu")
    with Running.of(loaded) as running, Robot(running.grpc, robot="arm") as one:
        two = Robot(running.grpc, robot="arm")
        assert one.opened.session != two.opened.session
        one.observe(100, [1.0, 0.0, 0.0])
        two.observe(0, [0.0, 1.0, 0.0])
        answers = [one.answer(), two.answer()]
        one.observe(101, [0.0])
        two.observe(1, [0.0, 0.0, 1.0])
        answers += [one.answer(), two.answer()]
        assert [answer.tick for answer in answers] == [100, 0, 101, 1]
        assert answers[2].status == pb.DECISION_STATUS_REJECTED
        assert list(answers[0].decision.action) == decided(runtime, [1.0, 0.0, 0.0])
        assert list(answers[1].decision.action) == decided(runtime, [0.0, 1.0, 0.0])
        assert list(answers[3].decision.action) == decided(runtime, [0.0, 0.0, 1.0])
        assert running.metric("dst_control_sessions") == 2
        two.half_close()
        eventually(lambda: running.metric("dst_control_sessions") == 1, "the second session ended")
        two.channel.close()
        one.observe(102)
        assert one.answer().status == pb.DECISION_STATUS_OK


def test_client_that_vanishes_frees_its_session(loaded):
    with Running.of(loaded) as running:
        robot = Robot(running.grpc)
        robot.observe(0)
        robot.answer()
        assert running.metric("dst_control_sessions") == 1
        robot.channel.close()
        robot.half_close()  # ends the thread that feeds the requests
        eventually(lambda: running.metric("dst_control_sessions") == 0, "the session was freed")


def test_half_closed_stream_is_answered_to_the_end(running):
    with Robot(running.grpc) as robot:
        for tick in range(3):
            robot.observe(tick)
        robot.half_close()
        answers = [answer.decision for answer in robot.responses]
        assert [answer.tick for answer in answers] == [0, 1, 2]
        assert answers[-1].status == pb.DECISION_STATUS_OK
        assert robot.responses.code() is grpc.StatusCode.OK


def test_flood_without_reading_is_answered_in_order_and_bounded(gated):
    # More observations than the inbox holds arrive while the first one is computed.
    with Running(Core([ServedPolicy(gated, inline_below_s=0.0)])) as running, Robot(running.grpc) as robot:
        gated.armed = True
        robot.observe(0)
        gated.wait_until_entered()
        for tick in range(1, 200):
            robot.observe(tick, status=late(tick))
        wait_until_reported(running, 64)  # the inbox is full and the rest stays outside
        gated.permitted.release(500)
        answers = [robot.answer() for _ in range(200)]
        assert [answer.tick for answer in answers] == list(range(200))
        assert answers[-1].status == pb.DECISION_STATUS_OK
        assert {answer.status for answer in answers} == {pb.DECISION_STATUS_OK, pb.DECISION_STATUS_SUPERSEDED}


def opening_refused(running, *requests):
    stream = PolicyServiceStub(running.channel).Control(iter(requests), timeout=PATIENCE_S)
    with pytest.raises(grpc.RpcError) as refusal:
        list(stream)
    return refusal.value.code(), refusal.value.details()


OBSERVATION = pb.ControlRequest(observation=pb.Observation(tick=1, validity_ns=SECOND, values=[0.0, 0.0, 0.0]))


@pytest.mark.parametrize(
    ("requests", "code", "message"),
    [
        ([OBSERVATION], grpc.StatusCode.INVALID_ARGUMENT, "the first message must be open"),
        ([], grpc.StatusCode.INVALID_ARGUMENT, "the first message must be open"),
        ([pb.ControlRequest()], grpc.StatusCode.INVALID_ARGUMENT, "the first message must be open"),
        (
            [pb.ControlRequest(open=pb.OpenSession()), pb.ControlRequest(open=pb.OpenSession())],
            grpc.StatusCode.INVALID_ARGUMENT,
            "the session is already open",
        ),
        ([pb.ControlRequest(open=pb.OpenSession(policy="walker"))], grpc.StatusCode.NOT_FOUND, "'walker'"),
        (
            [pb.ControlRequest(open=pb.OpenSession(contract="0" * 64))],
            grpc.StatusCode.FAILED_PRECONDITION,
            "contract must be",
        ),
        (
            [pb.ControlRequest(open=pb.OpenSession(robot="arm\n2"))],
            grpc.StatusCode.INVALID_ARGUMENT,
            "robot must be at most 64 printable characters",
        ),
    ],
)
def test_stream_that_does_not_open_properly_is_refused(running, requests, code, message):
    got, details = opening_refused(running, *requests)
    assert got is code
    assert message in details
    eventually(lambda: running.metric("dst_control_sessions") == 0, "the refused session was freed")
