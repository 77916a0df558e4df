import time

import numpy as np
import pytest

from protos import policy_pb2 as pb
from server.rehearsal import LEAD_S, Rehearsal
from server.runtime import Runtime
from tests.server.running import PATIENCE_S, FakeClock, Robot, Running, decided

MS = 1_000_000


class Timers:
    """An event loop's `call_later` whose time passes when a test says so."""

    def __init__(self):
        self.waiting = []

    def __call__(self, delay_s, callback):
        timer = Timer(delay_s, callback)
        self.waiting.append(timer)
        return timer

    def fire(self):
        due, self.waiting = [timer for timer in self.waiting if not timer.cancelled], []
        for timer in due:
            timer.callback()
        return [timer.delay_s for timer in due]


class Timer:
    def __init__(self, delay_s, callback):
        self.delay_s, self.callback, self.cancelled = delay_s, callback, False

    def cancel(self):
        self.cancelled = True


class Case:
    def __init__(self):
        self.clock, self.timers, self.made, self.busy = FakeClock(), Timers(), 0, False
        self.rehearsal = Rehearsal(self.make, busy=lambda: self.busy, later=self.timers, clock=self.clock)

    def make(self):
        self.made += 1

    def ask(self, *pauses_ms, answered_after_ms=0):
        for pause_ms in pauses_ms:
            self.clock.now += round(pause_ms * MS)
            received_ns = self.clock.now
            self.clock.now += answered_after_ms * MS
            self.rehearsal.plan(received_ns)
            self.clock.now = received_ns


@pytest.fixture
def case():
    return Case()


def test_a_regular_robot_is_rehearsed_shortly_before_it_asks(case):
    case.ask(0, 10, 10.5)
    assert case.timers.fire() == [pytest.approx(0.0105 - LEAD_S)]
    assert case.made == 1
    assert case.timers.fire() == []


def test_the_time_of_answering_is_not_waited_once_more(case):
    case.ask(0, 10, 10, answered_after_ms=3)
    assert case.timers.fire() == [pytest.approx(0.010 - 0.003 - LEAD_S)]


def test_a_new_question_takes_the_place_of_what_was_foretold(case):
    case.ask(0, 10, 10, 10)
    assert len(case.timers.fire()) == case.made == 1


@pytest.mark.parametrize("pauses_ms", [(0,), (0, 10), (0, 10, 14), (0, 10, 7), (0, 2, 2), (0, 1500, 1500), (0, 0, 0)])
def test_what_cannot_be_foretold_or_is_warm_anyway_is_not_rehearsed(case, pauses_ms):
    case.ask(*pauses_ms)
    assert case.timers.fire() == []


def test_nothing_is_rehearsed_while_something_else_is_computed(case):
    case.ask(0, 10, 10)
    case.busy = True
    assert case.timers.fire()
    assert case.made == 0


def test_nothing_is_rehearsed_after_the_end(case):
    case.ask(0, 10, 10)
    case.rehearsal.cancel()
    assert case.timers.fire() == []


def paced(running, robot, *, period_s, until):
    """Asks like a control loop until something is true; returns the answers."""
    answers, end = [], time.monotonic() + PATIENCE_S
    tick = 0
    while True:
        robot.observe(tick, VALUES[tick % len(VALUES)])
        answers.append(robot.answer())
        if until(tick):
            return answers
        assert time.monotonic() < end, "it did not come true"
        tick += 1
        time.sleep(period_s)  # a robot's own pace, not a wait for the server


VALUES = np.random.default_rng(2).normal(size=(7, 3)).tolist()


def rehearsals(running):
    return running.metric("dst_rehearsals_total", policy="reacher")


def test_a_rehearsal_is_seen_by_nobody(loaded):
    runtime = Runtime(loaded, "cpu")
    with Running.of(loaded) as running, Robot(running.grpc) as robot:
        answers = paced(running, robot, period_s=0.02, until=lambda tick: tick % 8 == 7 and rehearsals(running) >= 3)
        assert all(answer.status == pb.DECISION_STATUS_OK for answer in answers)
        for tick, answer in enumerate(answers):
            assert answer.tick == tick
            assert list(answer.decision.action) == decided(runtime, VALUES[tick % len(VALUES)])
        for counted in ("dst_decisions_total", "dst_stage_latency_seconds_count"):
            assert running.metric(counted, policy="reacher", method="control") == len(answers)
        assert running.metric("dst_batch_rows_count", policy="reacher") == len(answers)


def test_without_it_nothing_is_rehearsed(loaded):
    with Running.of(loaded, rehearsal=False) as running, Robot(running.grpc) as robot:
        paced(running, robot, period_s=0.02, until=lambda tick: tick == 20)
        assert rehearsals(running) == 0
