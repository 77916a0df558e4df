"""The example controller in Node.js against real servers; what it needs is installed once, from its lock file."""

import json
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos import policy_pb2 as pb
from sim_bridge.client import PolicyClient
from tests.integration.conftest import ServerProcess
from tests.sim_bridge.scripted_policy import decision_for, wait_until

ROOT = Path(__file__).parents[2]


def finish(process):
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def logged(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_applied_actions_are_those_that_act_decides(controller, bundle, tmp_path):
    server = ServerProcess(bundle)
    with PolicyClient(server.grpc) as client:
        description = client.describe()
        fits = ("--contract", description.contract, "--observation-size", "3", "--action-size", "2")
        log = tmp_path / "log"
        code, output, errors = finish(
            controller(server.grpc, "--ticks", "50", "--budget-s", "30", "--log", str(log), *fits)
        )
        assert code == 0, errors
        ticks = logged(log)
        observations = np.array([tick["observation"] for tick in ticks], np.float64)
        decided = [client.act(observation, detail=pb.DETAIL_NONE).decision.action for observation in observations]
    assert server.stop() == 0
    assert [tick["tick"] for tick in ticks] == list(range(1, 51))
    assert len(np.unique(observations, axis=0)) == 50
    np.testing.assert_allclose([tick["applied"] for tick in ticks], decided, rtol=1e-6)
    summary = json.loads(output)
    assert (summary["policy"], summary["policy_version"]) == (description.policy, description.policy_version)
    assert summary["outcomes"] == {"ok": 50}
    assert 0 < summary["round_trip_us"]["p50"] <= summary["round_trip_us"]["p99"] <= summary["round_trip_us"]["max"]
    assert abs(summary["clock_offset_ns"]) <= summary["clock_offset_error_ns"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--contract", "0123"), r"contract must be 0123, got {contract}"),
        (("--observation-size", "4"), "observation size must be 4, got 3"),
        (("--action-size", "2"), "action size must be 2, got 1"),
        (("--policy", "other"), "policy must be one of scripted, got 'other'"),
        (("--ticks", "0"), "--ticks must be a whole number above 0, got '0'"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_session_is_opened(controller, server, options, reason):
    code, output, errors = finish(controller(server.address, *options))
    assert (code, output) == (2, "")
    assert reason.format(contract=server.policy.description.contract) in errors
    assert len(errors.splitlines()) == 1
    assert server.policy.opened == []


def test_session_that_the_server_refuses_is_told_in_its_words(controller, server):
    server.policy.refuse_open = (grpc.StatusCode.RESOURCE_EXHAUSTED, "a decision costs 9 ms")
    code, _, errors = finish(controller(server.address))
    assert code == 2
    assert "a decision costs 9 ms" in errors


def test_answers_to_older_ticks_are_never_applied(controller, server, tmp_path):
    def old_answer_first(policy, observation):
        old = pb.Observation(tick=observation.tick - 1, sent_ns=observation.sent_ns)
        yield decision_for(old, [-2.0])
        yield decision_for(observation, policy.act(observation.values))

    server.policy.answer = old_answer_first
    log = tmp_path / "log"
    code, output, errors = finish(controller(server.address, "--ticks", "10", "--budget-s", "30", "--log", str(log)))
    assert code == 0, errors
    summary = json.loads(output)
    assert (summary["outcomes"], summary["stale_replies"]) == ({"ok": 10}, 10)
    expected = [server.policy.act(tick["observation"]) for tick in logged(log)]
    np.testing.assert_allclose([tick["applied"] for tick in logged(log)], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (lambda policy, observation: decision_for(observation, [2.5]), "unusable"),
        (lambda policy, observation: decision_for(observation, [float("nan")]), "unusable"),
        (lambda policy, observation: decision_for(observation, [0.1, 0.1]), "unusable"),
        (
            lambda policy, observation: decision_for(observation, [], pb.DECISION_STATUS_SUPERSEDED, "newer"),
            "superseded",
        ),
        (
            lambda policy, observation: decision_for(observation, [], pb.DECISION_STATUS_OVERLOADED, "busy"),
            "overloaded",
        ),
    ],
)
def test_last_good_action_is_held_while_none_comes(controller, server, tmp_path, answer, outcome):
    def good_at_first(policy, observation):
        yield decision_for(observation, [1.5]) if observation.tick == 1 else answer(policy, observation)

    server.policy.answer = good_at_first
    log = tmp_path / "log"
    code, output, errors = finish(controller(server.address, "--ticks", "5", "--budget-s", "30", "--log", str(log)))
    assert code == 0, errors
    assert json.loads(output)["outcomes"] == {"ok": 1, outcome: 4}
    assert [tick["applied"] for tick in logged(log)] == [[1.5]] * 5


def test_server_that_dies_ends_the_run_with_what_was_done(controller, server):
    process = controller(server.address, "--ticks", "100000")
    wait_until(lambda: len(server.policy.observations) > 5, timeout_s=60)
    server.die()
    code, output, errors = finish(process)
    assert code == 4
    assert f"policy server at {server.address} was lost" in errors
    assert json.loads(output)["outcomes"]["lost"] == 1


def test_server_that_stops_answering_is_given_up(controller, server):
    answering = threading.Event()

    def answer_once(policy, observation):
        if not answering.is_set():
            answering.set()
            yield decision_for(observation, [0.0])

    server.policy.answer = answer_once
    code, output, errors = finish(controller(server.address, "--ticks", "100000", "--give-up-s", "0.3"))
    assert code == 4
    assert "no reply for 0.3 s" in errors
    assert json.loads(output)["outcomes"]["late"] >= 1


def test_lock_file_names_no_place_to_download_from():
    lock = json.loads((ROOT / "sim_bridge/node_controller/package-lock.json").read_text())
    packages = {name: package for name, package in lock["packages"].items() if name}
    assert "node_modules/@grpc/grpc-js" in packages
    assert not any("resolved" in package for package in packages.values())
    assert all(package["integrity"].startswith("sha512-") for package in packages.values())
