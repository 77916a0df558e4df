import asyncio
import dataclasses
import json

import numpy as np
import pytest

from protos import policy_pb2 as pb
from server import live as live_module
from server.bundle import load_bundle
from server.core import Core
from server.errors import OverloadedError
from server.live import HISTORY_S, Live
from server.runtime import Detail, Runtime
from server.served_policy import Asking, ServedPolicy
from tests.server import small_bundle
from tests.server.running import SECOND, FakeClock, Robot, Running


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(scope="module")
def runtime(loaded):
    return Runtime(loaded, "cpu")


@pytest.fixture
def policy(runtime):
    return ServedPolicy(runtime)


@pytest.fixture
def live(policy, clock):
    return Live(Core([policy]), clock=clock, event_period_s=0.0)


def tick(live_session, policy, number, clock, *, detail=Detail.SUMMARY):
    observation = policy.checked_observation(np.full(3, number / 100))
    decision = asyncio.run(policy.decide(observation, detail, Asking(received_ns=0)))
    live_session.record(number, decision, clock.now)
    return decision


def events(live, count):
    """The next events of a new viewer."""

    async def read():
        stream = live.events()
        read = [await anext(stream) for _ in range(count)]
        await stream.aclose()
        return [json.loads(event.removeprefix(b"data: ")) for event in read]

    return asyncio.run(read())


def test_history_holds_what_was_decided(live, policy, clock):
    session = live.open(session="arm-1", robot="arm", policy=policy)
    status = pb.RobotStatus(guard=pb.GUARD_STATE_HOLD, guard_reason="late", round_trip_ns=1_500_000, late_ticks=3)
    assert session.report(status) == 3
    assert session.report(status) == 0
    clock.now += SECOND // 2
    decision = tick(session, policy, 7, clock)
    (event,) = events(live, 1)
    (robot,) = event["robots"]
    (sample,) = robot["samples"]
    assert (sample["tick"], sample["t"], sample["guard"], sample["round_trip_ms"]) == (7, 0.5, "HOLD", 1.5)
    np.testing.assert_allclose(sample["action"], decision.action, rtol=1e-5)
    shown = dataclasses.asdict(decision.summary)
    np.testing.assert_allclose(robot["observation_gradient_mean"], shown.pop("observation_gradient_mean"), rtol=1e-5)
    for name, value in shown.items():
        np.testing.assert_allclose(sample[name], value, rtol=1e-5, err_msg=name)
    assert (robot["guard"], robot["guard_reason"], robot["late_ticks"], robot["ticks"]) == ("HOLD", "late", 3, 1)
    (described,) = event["server"]["policies"]
    assert described["action"] == list(small_bundle.ACTION)
    assert described["return_quantile_levels"] == list(small_bundle.LEVELS)
    assert described["return_threshold"] == small_bundle.THRESHOLD
    assert described["calibration"]["corrected_coverage"] == [0.49, 0.81]
    assert described["calibration"]["data_distance_threshold"] == 4.0
    assert described["observation"] == list(small_bundle.OBSERVATION)
    assert described["observation_std"] == list(small_bundle.OBSERVATION_STD)


def test_what_was_not_asked_for_is_null(live, policy, clock):
    session = live.open(session="arm-1", robot="arm", policy=policy)
    tick(session, policy, 0, clock, detail=Detail.NONE)
    sample = events(live, 1)[0]["robots"][0]["samples"][0]
    assert len(sample["action"]) == 2
    assert sample["return_mean"] is None
    assert sample["gradient_mean"] == [None, None]
    assert sample["round_trip_ms"] is None


def test_uncalibrated_policy_shows_no_corrected_quantiles(uncalibrated, clock):
    policy = ServedPolicy(Runtime(load_bundle(uncalibrated), "cpu"))
    live = Live(Core([policy]), clock=clock, event_period_s=0.0)
    session = live.open(session="arm-1", robot="arm", policy=policy)
    decision = tick(session, policy, 0, clock)
    (event,) = events(live, 1)
    (described,) = event["server"]["policies"]
    assert (described["calibrated"], described["calibration"]) == (False, None)
    (robot,) = event["robots"]
    assert robot["observation_gradient_mean"] is None
    (sample,) = robot["samples"]
    assert sample["return_quantiles_corrected"] == []
    np.testing.assert_allclose(sample["return_quantiles_raw"], decision.summary.return_quantiles_raw, rtol=1e-5)
    assert sample["data_distance"] == pytest.approx(decision.summary.data_distance, rel=1e-5)


def test_each_viewer_gets_each_tick_once(live, policy, clock):
    session = live.open(session="arm-1", robot="arm", policy=policy)

    def ticks(event):
        return [sample["tick"] for sample in event["robots"][0]["samples"]]

    async def watch():
        early, seen = live.events(), []
        for number in range(40):
            decision = await policy.decide(policy.checked_observation([0, 0, 0]), Detail.SUMMARY, Asking(received_ns=0))
            session.record(number, decision, clock.now)
            if number % 7 == 0:
                seen += ticks(json.loads((await anext(early))[6:]))
        late = live.events()
        assert ticks(json.loads((await anext(late))[6:])) == list(range(40))
        seen += ticks(json.loads((await anext(early))[6:]))
        assert ticks(json.loads((await anext(late))[6:])) == []
        await early.aclose()
        await late.aclose()
        return seen

    assert asyncio.run(watch()) == list(range(40))


def test_history_is_bounded_in_ticks_and_in_time(live, policy, clock, monkeypatch):
    monkeypatch.setattr(live_module, "HISTORY_TICKS", 10)
    session = live.open(session="arm-1", robot="arm", policy=policy)
    for number in range(25):
        tick(session, policy, number, clock)
        clock.now += SECOND
    samples = events(live, 1)[0]["robots"][0]["samples"]
    assert [sample["tick"] for sample in samples] == list(range(15, 25))
    assert [sample["t"] for sample in samples] == list(range(15, 25))
    clock.now += int((HISTORY_S - 5) * SECOND)
    assert [sample["tick"] for sample in events(live, 1)[0]["robots"][0]["samples"]] == list(range(20, 25))


def test_finished_session_stays_a_minute_and_fades(live, policy, clock):
    session = live.open(session="arm-1", robot="arm", policy=policy)
    live.finish(session)
    clock.now += int(HISTORY_S * SECOND)
    (robot,) = events(live, 1)[0]["robots"]
    assert (robot["connected"], robot["connected_s"]) == (False, 0)
    clock.now += 1
    assert events(live, 1)[0]["robots"] == []


def test_sessions_are_bounded_and_finished_ones_give_way(live, policy, clock, monkeypatch):
    monkeypatch.setattr(live_module, "MAX_SESSIONS", 2)
    first = live.open(session="a", robot="a", policy=policy)
    live.open(session="b", robot="b", policy=policy)
    with pytest.raises(OverloadedError, match="2 control sessions are open"):
        live.open(session="c", robot="c", policy=policy)
    live.finish(first)
    live.open(session="c", robot="c", policy=policy)
    assert [robot["session"] for robot in events(live, 1)[0]["robots"]] == ["b", "c"]


def test_viewers_are_bounded_and_leave_room_when_they_go(live, monkeypatch):
    monkeypatch.setattr(live_module, "MAX_VIEWERS", 1)

    async def watch():
        first = live.events()
        await anext(first)
        with pytest.raises(OverloadedError, match="1 viewers are connected"):
            await anext(live.events())
        await first.aclose()
        await anext(live.events())

    asyncio.run(watch())


def test_numbers_of_a_robot_cannot_break_the_json(live, policy, clock):
    session = live.open(session="arm-1", robot='a"rm', policy=policy)
    session.report(pb.RobotStatus(guard=9, episode_return=float("nan"), guard_reason='"' * 1000, round_trip_ns=-5))
    decision = tick(session, policy, 0, clock)
    session.record(2**64 - 1, decision, clock.now)
    robot = events(live, 1)[0]["robots"][0]
    assert robot["episode_return"] is None
    assert robot["guard"] == "UNKNOWN"
    assert len(robot["guard_reason"]) == 200
    assert robot["samples"][1]["tick"] == 2**64 - 1


def test_page_stream_follows_a_robot_and_ends_with_the_server(loaded):
    with (
        Running.of(loaded) as running,
        Robot(running.grpc, robot="arm") as robot,
        running.client.stream("GET", "/v1/live") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = (line for line in response.iter_lines() if line)
        assert json.loads(next(lines).removeprefix("data: "))["robots"][0]["samples"] == []
        seen = []
        for number in range(3):
            robot.observe(number)
            robot.answer()
            while number not in seen:
                (shown,) = json.loads(next(lines).removeprefix("data: "))["robots"]
                assert (shown["robot"], shown["session"]) == ("arm", robot.opened.session)
                seen += [sample["tick"] for sample in shown["samples"]]
        assert seen == [0, 1, 2]
        running.begin_stop()
        for _ in lines:
            pass  # ends without an error once the server closes the stream
