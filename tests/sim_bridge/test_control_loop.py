import numpy as np
import pytest

from protos import policy_pb2 as pb
from sim_bridge.control_loop import ControlLoop, LoopConfig
from sim_bridge.control_session import Outcome, Reply
from sim_bridge.errors import DriveConfigError
from sim_bridge.guard import Guard, GuardConfig, GuardState
from sim_bridge.robot import StepResult
from sim_bridge.tasks import Channel, TaskContract

MS = 1_000_000


class HandClock:
    """Time moves only when somebody sleeps or works."""

    def __init__(self):
        self.time_ns = 1_000 * MS

    def now_ns(self):
        return self.time_ns

    def sleep_until_ns(self, deadline_ns):
        self.time_ns = max(self.time_ns, deadline_ns)


class CountingRobot:
    """Observes the number of applied actions; each takes `work_ns`, the task ends after `length`."""

    contract = TaskContract(
        environment="Counting-v0",
        observation=(Channel(name="count", unit="1", low=-np.inf, high=np.inf),),
        action=(Channel(name="push", unit="N", low=-1.0, high=1.0),),
        control_period_s=0.01,
    )
    neutral_action = np.zeros(1, np.float32)

    def __init__(self, clock, length=5):
        self.clock, self.length, self.applied, self.times, self.work_ns = clock, length, [], [], {}

    def reset(self, seed):
        self.count = 0

    def observe(self):
        self.times.append(self.clock.time_ns)
        return np.array([float(self.count)])

    def apply(self, action):
        self.applied.append(float(action[0]))
        self.clock.time_ns += self.work_ns.get(self.count, 0)
        self.count += 1
        return StepResult(reward=1.5, terminated=self.count >= self.length, truncated=False)

    def close(self):
        pass


class ScriptedDecisions:
    """Takes `delay_ns[tick]` and answers `outcomes[tick]`, OK with action 0.1 x tick otherwise."""

    clock_offset = None
    session = "arm-1"

    def __init__(self, clock):
        self.clock, self.delay_ns, self.outcomes, self.requests = clock, {}, {}, []

    def decide(self, *, tick, observation, deadline_ns, status):
        self.requests.append((tick, observation.copy(), deadline_ns, status))
        sent_ns = self.clock.time_ns
        delay_ns = self.delay_ns.get(tick, 2 * MS)
        self.clock.time_ns += min(delay_ns, deadline_ns - sent_ns)
        outcome = self.outcomes.get(tick, Outcome.LATE if delay_ns > deadline_ns - sent_ns else Outcome.OK)
        decision = None
        if outcome is Outcome.OK:
            decision = pb.ControlDecision(
                tick=tick,
                status=pb.DECISION_STATUS_OK,
                decision=pb.Decision(action=[0.1 * tick]),
                valid_until_ns=deadline_ns,
            )
        problem = "" if outcome is Outcome.OK else "scripted"
        return Reply(outcome=outcome, problem=problem, decision=decision, round_trip_ns=self.clock.time_ns - sent_ns)


def rig(*, realtime=True, length=5, hold_timeout_s=10.0, record=None):
    clock = HandClock()
    robot = CountingRobot(clock, length)
    decisions = ScriptedDecisions(clock)
    loop = ControlLoop(
        robot=robot,
        decisions=decisions,
        guard=Guard(robot.contract.action, robot.neutral_action, GuardConfig(hold_timeout_s=hold_timeout_s)),
        clock=clock,
        config=LoopConfig(tick_period_s=0.01, budget_s=0.01, realtime=realtime),
        record=record,
    )
    return clock, robot, decisions, loop


def drive(loop, interrupted=lambda: False):
    return loop.run_episode(episode=0, seed=7, interrupted=interrupted)


def test_ticks_are_due_at_absolute_times_whatever_each_one_costs():
    clock, robot, decisions, loop = rig(length=50)
    start = clock.time_ns
    decisions.delay_ns = {tick: (tick * 37 % 9) * MS for tick in range(1, 51)}
    drive(loop)
    assert robot.times == [start + index * 10 * MS for index in range(50)]
    assert loop.statistics.overruns == 0
    assert loop.statistics.late_ticks == 0


def test_short_overrun_is_counted_once_and_the_grid_is_kept():
    clock, robot, _, loop = rig()
    start = clock.time_ns
    robot.work_ns = {1: 12 * MS}
    drive(loop)
    offsets = [(time - start) / MS for time in robot.times]
    assert offsets == [0, 10, 24, 30, 40]
    assert loop.statistics.overruns == 1


def test_long_overrun_leaves_missed_ticks_out_instead_of_hurrying():
    clock, robot, _, loop = rig()
    start = clock.time_ns
    robot.work_ns = {1: 35 * MS}
    drive(loop)
    offsets = [(time - start) / MS for time in robot.times]
    assert offsets == [0, 10, 47, 50, 60]
    assert loop.statistics.overruns == 3


def test_without_realtime_the_next_tick_follows_at_once():
    clock, robot, _, loop = rig(realtime=False)
    start = clock.time_ns
    drive(loop)
    assert [(time - start) / MS for time in robot.times] == [0, 2, 4, 6, 8]


def test_late_decision_is_counted_and_the_last_safe_action_applied():
    _, robot, decisions, loop = rig()
    decisions.delay_ns = {3: 99 * MS}
    drive(loop)
    np.testing.assert_allclose(robot.applied, [0.1, 0.2, 0.2, 0.4, 0.5], rtol=1e-6)
    assert loop.statistics.late_ticks == 1
    assert loop.statistics.hold_ticks == 1
    assert loop.statistics.round_trips.count == 4


@pytest.mark.parametrize(
    ("outcome", "late"),
    [
        (Outcome.LATE, 1),
        (Outcome.LOST, 1),
        (Outcome.SUPERSEDED, 1),
        (Outcome.EXPIRED, 1),
        (Outcome.REJECTED, 0),
        (Outcome.FAILED, 0),
    ],
)
def test_every_outcome_without_a_decision_holds_with_its_name_as_reason(outcome, late):
    _, robot, decisions, loop = rig(length=2)
    decisions.outcomes = {2: outcome}
    drive(loop)
    np.testing.assert_allclose(robot.applied, [0.1, 0.1])
    assert loop.statistics.guard is GuardState.HOLD
    assert loop.statistics.guard_reason == f"{outcome.value}: scripted"
    assert loop.statistics.late_ticks == late


def test_decision_for_which_the_server_claims_a_longer_validity_still_goes_stale():
    _, robot, decisions, loop = rig(length=1)
    answer = decisions.decide

    def slow(**request):
        reply = answer(**request)
        reply.decision.valid_until_ns = 10**18
        decisions.clock.time_ns += 20 * MS
        return reply

    decisions.decide = slow
    drive(loop)
    assert robot.applied == [0.0]
    assert loop.statistics.guard_reason.startswith("stale")
    assert loop.statistics.late_ticks == 1


def test_guard_stop_ends_the_episode_with_the_neutral_action():
    _, robot, decisions, loop = rig(length=100, hold_timeout_s=0.03)
    decisions.outcomes = dict.fromkeys(range(3, 101), Outcome.REJECTED)
    result = drive(loop)
    assert result.guard_stopped
    assert not result.interrupted
    np.testing.assert_allclose(robot.applied, [0.1, 0.2, 0.2, 0.2, 0.2, 0.0], rtol=1e-6)
    assert loop.statistics.stops == 1
    assert loop.statistics.hold_ticks == 3


def test_next_episode_begins_with_a_rearmed_guard_and_goes_on_counting_ticks():
    _, _, decisions, loop = rig(length=2, hold_timeout_s=0.0)
    decisions.outcomes = {1: Outcome.REJECTED}
    assert drive(loop).guard_stopped
    result = loop.run_episode(episode=1, seed=8, interrupted=lambda: False)
    assert not result.guard_stopped
    assert result.steps == 2
    assert [tick for tick, *_ in decisions.requests] == [1, 2, 3]


def test_interruption_ends_between_ticks_and_leaves_the_robot_neutral():
    _, robot, _, loop = rig(length=100)
    result = drive(loop, interrupted=lambda: robot.count == 3)
    assert result.interrupted
    assert result.steps == 3
    assert result.episode_return == 4.5
    assert robot.applied[-1] == 0.0


def test_status_tells_the_server_what_happened_at_the_previous_tick():
    _, _, decisions, loop = rig(length=4)
    decisions.delay_ns = {2: 99 * MS}
    drive(loop)
    before, after = decisions.requests[1][3], decisions.requests[2][3]
    assert (before.guard, before.late_ticks, before.round_trip_ns) == (pb.GUARD_STATE_NOMINAL, 0, 2 * MS)
    assert (after.guard, after.late_ticks) == (pb.GUARD_STATE_HOLD, 1)
    assert after.guard_reason == "late: scripted"
    assert after.episode_return == 3.0


def test_late_ticks_are_told_since_the_session_was_opened_and_counted_since_the_start():
    _, _, decisions, loop = rig(length=4)
    decisions.delay_ns = dict.fromkeys((1, 2, 6), 99 * MS)
    drive(loop)
    decisions.session = "arm-2"
    drive(loop)
    told = [status.late_ticks for *_, status in decisions.requests]
    assert told == [0, 1, 2, 2, 0, 0, 1, 1]
    assert loop.statistics.late_ticks == 3


def test_record_holds_what_was_seen_decided_and_applied():
    ticks = []
    clock, _, decisions, loop = rig(length=3, record=ticks.append)
    start = clock.time_ns
    decisions.outcomes = {2: Outcome.REJECTED}
    drive(loop)
    assert [tick.tick for tick in ticks] == [1, 2, 3]
    assert [list(tick.observation) for tick in ticks] == [[0.0], [1.0], [2.0]]
    assert [tick.started_ns - start for tick in ticks] == [0, 10 * MS, 20 * MS]
    assert [tick.applied_ns - start for tick in ticks] == [2 * MS, 12 * MS, 22 * MS]
    np.testing.assert_allclose([tick.applied_action[0] for tick in ticks], [0.1, 0.1, 0.3], rtol=1e-6)
    assert [tick.HasField("decision") for tick in ticks] == [True, False, True]
    assert [tick.guard for tick in ticks] == [pb.GUARD_STATE_NOMINAL, pb.GUARD_STATE_HOLD, pb.GUARD_STATE_NOMINAL]
    assert ticks[1].problem == "scripted"
    assert [tick.terminated for tick in ticks] == [False, False, True]
    assert {tick.seed for tick in ticks} == {7}


@pytest.mark.parametrize("field", ["tick_period_s", "budget_s"])
def test_pace_must_be_a_positive_duration(field):
    with pytest.raises(DriveConfigError, match=field):
        LoopConfig(**{"tick_period_s": 0.01, "budget_s": 0.01, "realtime": True, field: 0.0})
