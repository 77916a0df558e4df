import asyncio
import dataclasses
import math

import numpy as np
import pytest

from server import waiting_line
from server.bundle import load_bundle
from server.core import Core
from server.errors import (
    BundleError,
    ContractMismatchError,
    ExpiredError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
    ShuttingDownError,
    UnknownPolicyError,
)
from server.runtime import Detail, Runtime
from server.served_policy import Asking, ServedPolicy
from tests.server.running import FakeClock, GatedRuntime


@pytest.fixture(scope="module")
def runtime(loaded):
    return Runtime(loaded, "cpu")


@pytest.fixture
def policy(runtime):
    return ServedPolicy(runtime)


def test_observation_that_is_not_finite_is_named_by_channel_and_index(policy):
    with pytest.raises(InvalidInputError, match="got nan for 'velocity' at index 1"):
        policy.checked_observation([0.0, math.nan, 0.0])


def test_observation_of_wrong_size_names_the_expected_channel(policy):
    with pytest.raises(
        InvalidInputError, match=r"shape \(3,\), got \(2,\); the policy expects 'temperature' at index 2"
    ):
        policy.checked_observation([0.0, 0.0])


def test_named_observation_is_put_in_contract_order(policy):
    assert policy.ordered_observation({"temperature": 3.0, "position": 1.0, "velocity": 2.0}) == [1.0, 2.0, 3.0]
    with pytest.raises(InvalidInputError, match="missing 'velocity', 'temperature'"):
        policy.ordered_observation({"position": 1.0})
    with pytest.raises(InvalidInputError, match="unknown channels 'pressure'"):
        policy.ordered_observation({"temperature": 3.0, "position": 1.0, "velocity": 2.0, "pressure": 0.0})


def test_contract_of_another_robot_is_refused_and_an_absent_one_is_not_compared(policy):
    policy.check_contract(policy.fingerprint)
    policy.check_contract("")
    with pytest.raises(ContractMismatchError, match=policy.fingerprint):
        policy.check_contract("0" * 64)


def test_policies_are_found_by_name(policy):
    core = Core([policy])
    assert core.policy("reacher") is policy
    assert core.policy("") is policy
    with pytest.raises(UnknownPolicyError, match="no policy is named 'walker'; loaded: 'reacher'"):
        core.policy("walker")


def test_two_policies_of_one_name_are_refused(policy):
    with pytest.raises(BundleError, match="two bundles hold a policy named 'reacher'"):
        Core([policy, policy])


def test_nothing_new_is_accepted_while_shutting_down(policy):
    core = Core([policy])
    core.stop_accepting()
    with pytest.raises(ShuttingDownError):
        core.policy("reacher")


@pytest.mark.parametrize("inline_below_s", [math.inf, 0.0])
def test_decision_is_the_same_on_the_event_loop_and_in_a_thread(runtime, inline_below_s):
    policy = ServedPolicy(runtime, inline_below_s=inline_below_s)
    observation = policy.checked_observation([0.1, -0.2, 0.3])
    decision = asyncio.run(policy.decide(observation, Detail.SAMPLES, Asking(received_ns=0)))
    assert policy.inline == (inline_below_s > 0)
    values = runtime.infer(observation[None], Detail.SAMPLES)
    outputs = {name: value[0] for name, value in zip(runtime.outputs[Detail.SAMPLES], values, strict=True)}
    np.testing.assert_array_equal(decision.action, outputs.pop("action"))
    np.testing.assert_array_equal(decision.samples.returns, outputs.pop("return_samples"))
    np.testing.assert_array_equal(decision.samples.action_gradients, outputs.pop("gradient_samples"))
    assert dataclasses.asdict(decision.summary).keys() == outputs.keys()
    for name, value in outputs.items():
        np.testing.assert_array_equal(getattr(decision.summary, name), value, err_msg=name)
    asyncio.run(policy.close())


def test_what_an_uncalibrated_policy_does_not_know_is_none(uncalibrated):
    policy = ServedPolicy(Runtime(load_bundle(uncalibrated), "cpu"))
    observation = policy.checked_observation([0.0, 0.0, 0.0])
    summary = asyncio.run(policy.decide(observation, Detail.SUMMARY, Asking(received_ns=0))).summary
    missing = {name for name, value in dataclasses.asdict(summary).items() if value is None}
    assert missing == {"return_quantiles_corrected", "observation_gradient_mean"}


def test_summary_and_samples_are_absent_unless_asked(policy):
    observation = policy.checked_observation([0.0, 0.0, 0.0])
    none = asyncio.run(policy.decide(observation, Detail.NONE, Asking(received_ns=0)))
    summary = asyncio.run(policy.decide(observation, Detail.SUMMARY, Asking(received_ns=0)))
    assert (none.summary, none.samples, summary.samples) == (None, None, None)
    assert summary.summary is not None


def test_expired_observation_is_not_computed(loaded):
    clock = FakeClock()
    runtime = GatedRuntime(loaded, "cpu")
    policy = ServedPolicy(runtime, clock=clock)
    observation = policy.checked_observation([0.0, 0.0, 0.0])
    runtime.armed = True  # a decision that is begun would leave a trace
    with pytest.raises(ExpiredError, match=r"expired 2\.0 ms before it could be computed"):
        asyncio.run(policy.decide(observation, Detail.NONE, Asking(received_ns=0, deadline_ns=clock.now - 2_000_000)))
    for late_ns in (0, 2_000_000):
        with pytest.raises(ExpiredError, match=rf"expired {late_ns / 1e6:.1f} ms before it could be computed"):
            policy.decide_now(observation, Detail.NONE, received_ns=0, deadline_ns=clock.now - late_ns)
    assert not runtime.entered.acquire(blocking=False)


@pytest.mark.parametrize("detail", Detail)
def test_the_short_way_decides_the_same(policy, detail):
    observation = policy.checked_observation([0.1, -0.2, 0.3])
    asked = asyncio.run(policy.decide(observation, detail, Asking(received_ns=0)))
    now = policy.decide_now(observation, detail, received_ns=0, deadline_ns=1 << 62)
    np.testing.assert_array_equal(now.row, asked.row)
    assert (now.layout, now.selected) == (asked.layout, None)
    assert now.own_ns == now.inference_ns


def test_the_short_way_is_no_way_past_what_has_to_wait_or_is_closed(runtime):
    policy = ServedPolicy(runtime, inline_below_s=0.0)
    observation = policy.checked_observation([0.1, -0.2, 0.3])
    assert policy.decide_now(observation, Detail.NONE, received_ns=0, deadline_ns=1 << 62) is None
    asyncio.run(policy.close())
    with pytest.raises(NotReadyError):
        policy.decide_now(observation, Detail.NONE, received_ns=0, deadline_ns=1 << 62)


def test_queue_time_and_inference_time_are_told_apart(loaded):
    clock = FakeClock()
    times = iter([clock.now + 7, clock.now + 18])
    policy = ServedPolicy(Runtime(loaded, "cpu"), clock=lambda: next(times))
    observation = policy.checked_observation([0.0, 0.0, 0.0])
    decision = asyncio.run(policy.decide(observation, Detail.NONE, Asking(received_ns=clock.now)))
    assert (decision.queue_ns, decision.inference_ns) == (7, 11)


def test_overload_is_refused_with_a_hint_and_passes(gated, monkeypatch):
    monkeypatch.setattr(waiting_line, "WAITING_LIMIT", 2)
    policy = ServedPolicy(gated, inline_below_s=0.0)
    observation = policy.checked_observation([0.0, 0.0, 0.0])
    gated.armed = True

    async def overload():
        waiting = [
            asyncio.create_task(policy.decide(observation, Detail.NONE, Asking(received_ns=0))) for _ in range(2)
        ]
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="'reacher' has 2 observations waiting") as refusal:
            await policy.decide(observation, Detail.NONE, Asking(received_ns=0))
        gated.permitted.release(3)
        await asyncio.gather(*waiting)
        await policy.decide(observation, Detail.NONE, Asking(received_ns=0))
        return refusal.value

    assert asyncio.run(overload()).retry_after_ms >= 1
    asyncio.run(policy.close())
