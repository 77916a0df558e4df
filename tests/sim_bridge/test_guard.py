import numpy as np
import pytest

from sim_bridge.errors import DriveConfigError
from sim_bridge.guard import Guard, GuardConfig, GuardState, Proposal
from sim_bridge.tasks import Channel

MS = 1_000_000
CHANNELS = (
    Channel(name="hip", unit="N m", low=-2.0, high=2.0),
    Channel(name="knee", unit="N m", low=0.5, high=1.0),
)
NEUTRAL = np.float32([0.0, 0.5])
GOOD = (1.0, 0.75)


def guard(hold_timeout_s=0.1):
    return Guard(CHANNELS, NEUTRAL, GuardConfig(hold_timeout_s=hold_timeout_s))


def good(now_ns, action=GOOD):
    return Proposal(action=action, valid_until_ns=now_ns + 10 * MS)


def missing(problem="late: no decision within 10.0 ms"):
    return Proposal(action=None, valid_until_ns=0, problem=problem)


def test_good_decision_passes_unchanged():
    verdict = guard().update(0, good(0))
    assert verdict.state is GuardState.NOMINAL
    assert verdict.reason == ""
    np.testing.assert_array_equal(verdict.action, np.float32(GOOD))


@pytest.mark.parametrize(
    ("proposal", "reason"),
    [
        (missing(), "late: no decision within 10.0 ms"),
        (missing("rejected: observation must be finite"), "rejected: observation must be finite"),
        (Proposal(action=GOOD, valid_until_ns=2 * MS), "stale: the decision was valid until 3.0 ms ago"),
        (Proposal(action=(1.0,), valid_until_ns=9 * MS), r"invalid: action must have shape \(2,\), got \(1,\)"),
        (Proposal(action=(), valid_until_ns=9 * MS), r"invalid: action must have shape \(2,\), got \(0,\)"),
        (Proposal(action=(1.0, np.nan), valid_until_ns=9 * MS), "invalid: action 'knee' must be finite, got nan"),
        (Proposal(action=(-np.inf, 0.6), valid_until_ns=9 * MS), "invalid: action 'hip' must be finite, got -inf"),
        (Proposal(action=(2.1, 0.6), valid_until_ns=9 * MS), r"'hip' must be within \[-2, 2\], got 2.1"),
        (Proposal(action=(1.0, 0.4), valid_until_ns=9 * MS), r"'knee' must be within \[0.5, 1\], got 0.4"),
    ],
)
def test_bad_decision_holds_the_last_safe_action(proposal, reason):
    machine = guard()
    machine.update(0, good(0))
    verdict = machine.update(5 * MS, proposal)
    assert verdict.state is GuardState.HOLD
    np.testing.assert_array_equal(verdict.action, np.float32(GOOD))
    with pytest.raises(ValueError, match=reason):
        raise ValueError(verdict.reason)


def test_decision_is_good_to_the_very_end_of_its_validity():
    machine = guard()
    assert machine.update(10 * MS, Proposal(action=GOOD, valid_until_ns=10 * MS)).state is GuardState.NOMINAL
    assert machine.update(10 * MS + 1, Proposal(action=GOOD, valid_until_ns=10 * MS)).state is GuardState.HOLD


def test_action_at_its_limit_survives_float32_rounding():
    verdict = guard().update(0, good(0, (2.0000001, 0.49999997)))
    assert verdict.state is GuardState.NOMINAL
    assert verdict.action[0] <= 2.0
    assert verdict.action[1] >= 0.5


def test_without_any_good_decision_the_neutral_action_is_held():
    verdict = guard().update(0, missing())
    assert verdict.state is GuardState.HOLD
    np.testing.assert_array_equal(verdict.action, NEUTRAL)


def test_good_decision_during_hold_returns_to_nominal_and_restarts_the_timeout():
    machine = guard(hold_timeout_s=0.1)
    assert machine.update(0, missing()).state is GuardState.HOLD
    assert machine.update(99 * MS, missing()).state is GuardState.HOLD
    assert machine.update(100 * MS, good(100 * MS)).state is GuardState.NOMINAL
    assert machine.update(150 * MS, missing()).state is GuardState.HOLD
    assert machine.update(249 * MS, missing()).state is GuardState.HOLD


def test_hold_that_lasts_stops_with_the_neutral_action():
    machine = guard(hold_timeout_s=0.1)
    machine.update(0, good(0))
    machine.update(1 * MS, missing())
    verdict = machine.update(101 * MS, missing("lost: connection refused"))
    assert verdict.state is GuardState.STOP
    assert verdict.reason == "held for 100 ms without a good decision; lost: connection refused"
    np.testing.assert_array_equal(verdict.action, NEUTRAL)


def test_stop_is_latched_until_rearmed():
    machine = guard(hold_timeout_s=0.0)
    assert machine.update(0, missing()).state is GuardState.STOP
    verdict = machine.update(1, good(1))
    assert verdict.state is GuardState.STOP
    np.testing.assert_array_equal(verdict.action, NEUTRAL)
    machine.rearm()
    assert machine.update(2, good(2)).state is GuardState.NOMINAL


def test_rearmed_guard_forgets_the_last_safe_action():
    machine = guard()
    machine.update(0, good(0))
    machine.rearm()
    np.testing.assert_array_equal(machine.update(1, missing()).action, NEUTRAL)


def test_caller_cannot_change_the_held_action_from_outside():
    machine = guard()
    machine.update(0, good(0)).action[:] = 99.0
    np.testing.assert_array_equal(machine.update(1, missing()).action, np.float32(GOOD))


def test_unsafe_neutral_action_is_refused():
    with pytest.raises(DriveConfigError, match="'knee' must be within"):
        Guard(CHANNELS, np.zeros(2, np.float32), GuardConfig())


@pytest.mark.parametrize("timeout", [-0.1, float("nan"), float("inf")])
def test_hold_timeout_must_be_a_duration(timeout):
    with pytest.raises(DriveConfigError, match="hold_timeout_s"):
        GuardConfig(hold_timeout_s=timeout)
