import io
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from rich.console import Console

from protos import policy_pb2 as pb
from protos import record_pb2
from sim_bridge.app import DriveConfig, drive
from sim_bridge.client import PolicyClient
from sim_bridge.errors import (
    ContractMismatchError,
    DriveConfigError,
    RecordError,
    RequestRefusedError,
    ServerUnreachableError,
)
from sim_bridge.record_reader import read_record
from sim_bridge.replay import main as replay_main
from sim_bridge.replay import replay
from sim_bridge.tasks import make_task
from tests.sim_bridge.scripted_policy import decision_for, wait_until, well_behaved


def run(server, *, budget_s=5.0, **settings):
    """Drive in this process; the ample budget keeps a busy machine from making ticks late."""
    console = Console(record=True, width=120, force_terminal=False, file=io.StringIO())
    return drive(
        DriveConfig(server=server.address, env="Pendulum-v1", budget_s=budget_s, **settings), console
    ), console.export_text()


def command(server, *options, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "sim_bridge", "--server", server.address, "--env", "Pendulum-v1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "160", **environment},
    )


def expected_return(policy, seed, perturbations=()):
    env = make_task("Pendulum-v1", perturbations=perturbations)
    observation, _ = env.reset(seed=seed)
    total, truncated = 0.0, False
    while not truncated:
        observation, reward, _, truncated, _ = env.step(policy.act(observation))
        total += float(reward)
    return total


def test_drive_does_to_the_task_exactly_what_the_policy_decides(server, tmp_path):
    report_path = tmp_path / "report.json"
    perturb = ("actuation=0.1", "observation=0.05")
    code, text = run(server, episodes=2, seed=11, perturb=perturb, report=report_path)
    assert code == 0
    report = json.loads(report_path.read_text())
    expected = [expected_return(server.policy, seed, perturb) for seed in (11, 12)]
    assert [episode["return"] for episode in report["episodes"]] == pytest.approx(expected, rel=1e-4)
    assert [(e["seed"], e["steps"], e["guard_stops"]) for e in report["episodes"]] == [(11, 200, 0), (12, 200, 0)]
    assert report["return_mean"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert report["ticks"] == 400
    assert report["late_ticks"] == report["late_share"] == report["dropped_records"] == 0
    assert 0 < report["round_trip_us"]["p50"] <= report["round_trip_us"]["p99"] <= report["round_trip_us"]["max"]
    assert report["rate_hz"] > 0
    assert report["guard"] == {"hold_ticks": 0, "stops": 0}
    assert (report["policy"], report["policy_version"]) == ("scripted", "v1")
    assert [observation.tick for observation in server.policy.observations] == list(range(1, 401))
    assert "episode 2/2  seed 12" in text


@pytest.mark.parametrize("calibrated", [False, True])
def test_uncalibrated_policy_is_marked_on_terminal_and_in_report_and_record(server, tmp_path, calibrated):
    server.policy.description.calibrated = calibrated
    server.policy.description.return_quantile_levels.extend([0.1, 0.9])
    path, report = tmp_path / "run.mcap", tmp_path / "report.json"
    code, text = run(server, record=path, report=report)
    assert code == 0
    assert ("policy scripted is not calibrated: its stated return ranges" in text) is not calibrated
    assert ("v1, not calibrated" in text) is not calibrated
    assert json.loads(report.read_text())["calibrated"] is calibrated
    assert next(read_record(path)).description == server.policy.description


@pytest.mark.parametrize(
    ("perturb", "policy", "told"),
    [
        ((), (), False),
        (("observation=0.05", "actuation=0.1"), ("actuation=0.10", "observation=5e-2"), False),
        (("actuation=0.1",), ("actuation=0.2",), True),
        ((), ("actuation=0.1",), True),
        (("actuation=0.1",), (), True),
        ((), ("wind=0.1",), True),
    ],
)
def test_noise_that_the_policy_was_not_made_under_is_told_in_one_line(server, perturb, policy, told):
    server.policy.description.perturbations.extend(policy)
    server.policy.description.calibrated = True
    code, text = run(server, perturb=perturb, detail="none")
    assert code == 0
    there, here = (" ".join(texts) or "nothing" for texts in (policy, perturb))
    line = f"policy scripted was trained and calibrated under {there}, this robot is perturbed by {here}: its stated"
    assert [line in shown for shown in text.splitlines()].count(True) == int(told)
    assert ("trained and calibrated under" in text) is told


def test_record_of_a_run_replays_exactly_and_shows_where_another_policy_differs(server, tmp_path, capsys, monkeypatch):
    path = tmp_path / "run.mcap"
    assert run(server, record=path, detail="none", name="left arm")[0] == 0
    head, *ticks, end = read_record(path)
    assert (head.environment, head.robot, head.detail) == ("Pendulum-v1", "left arm", pb.DETAIL_NONE)
    assert len(ticks) == 200
    assert end == record_pb2.Episode(episode=0, seed=0, steps=200, episode_return=end.episode_return)
    assert sum(tick.reward for tick in ticks) == pytest.approx(end.episode_return)
    with PolicyClient(server.address) as client:
        same = replay(path, client)
        assert (same.compared, same.different, same.first) == (200, 0, None)
        changed = next(index for index, tick in enumerate(ticks) if abs(tick.decision.decision.action[0]) < 1.9)
        server.policy.gain[0, 2] = np.nextafter(server.policy.gain[0, 2], np.float32(10))
        other = replay(path, client)
    assert other.different > 0
    assert other.first.tick >= ticks[changed].tick
    recorded = {tick.tick: tick for tick in ticks}[other.first.tick]
    np.testing.assert_array_equal(other.first.recorded, np.float32(recorded.decision.decision.action))
    np.testing.assert_array_equal(other.first.replayed, server.policy.act(recorded.observation))
    assert 0 < other.largest < 1e-4

    monkeypatch.setattr(sys, "argv", ["dst-replay", str(path), "--server", server.address])
    assert replay_main() == 1
    assert f"first at tick {other.first.tick}" in capsys.readouterr().out


def test_replay_of_a_record_without_decisions_is_refused(server, tmp_path):
    server.policy.answer = lambda policy, o: iter([decision_for(o, [], pb.DECISION_STATUS_REJECTED, "no")])
    run(server, record=tmp_path / "run.mcap", hold_timeout_s=0.0)
    with PolicyClient(server.address) as client, pytest.raises(RecordError, match="at least one decision"):
        replay(tmp_path / "run.mcap", client)


def test_robot_does_not_move_under_another_contract(server, tmp_path):
    server.policy.description.observation[1].name = "elbow"
    server.policy.description.control_period_s = 0.02
    with pytest.raises(ContractMismatchError, match="got 2 differences"):
        run(server, record=tmp_path / "run.mcap")
    assert server.policy.opened == []
    assert not (tmp_path / "run.mcap").exists()


def test_contract_mismatch_exits_2_and_shows_both_sides(server):
    server.policy.description.observation[1].name = "elbow"
    process = command(server)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "elbow [unknown] -1 to 1" in output
    assert "observation_1 [unknown] -1 to 1" in output
    assert len(errors.strip().splitlines()) == 1
    assert "Traceback" not in errors


def test_session_insists_on_the_contract_that_was_checked(server):
    run(server, name="arm")
    assert server.policy.opened[0].contract == server.policy.description.contract
    assert server.policy.opened[0].robot == "arm"


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        ([float("nan")], "must be finite, got nan"),
        ([2.5], r"must be within [-2, 2], got 2.5"),
        ([0.0, 0.0], "got (2,)"),
    ],
)
def test_bad_decisions_never_reach_the_actuators(server, tmp_path, action, reason):
    def bad_from_the_fifth(policy, observation):
        yield decision_for(observation, [1.0] if observation.tick < 5 else action)

    server.policy.answer = bad_from_the_fifth
    code, _ = run(server, record=tmp_path / "run.mcap", report=tmp_path / "r.json", hold_timeout_s=0.02)
    _, *ticks, _ = read_record(tmp_path / "run.mcap")
    applied = [list(tick.applied_action) for tick in ticks]
    assert code == 5
    assert applied == [[1.0]] * (len(ticks) - 1) + [[0.0]]
    assert ticks[4].guard == pb.GUARD_STATE_HOLD
    assert reason in ticks[4].guard_reason
    assert ticks[-1].guard == pb.GUARD_STATE_STOP
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["episodes"][0]["guard_stops"] == report["guard"]["stops"] == 1


def test_one_episode_stopped_by_the_guard_among_good_ones_exits_5(server, tmp_path):
    def bad_in_the_first_episode(policy, observation):
        bad = observation.status.episode == 0
        yield decision_for(observation, [float("nan")] if bad else policy.act(observation.values))

    server.policy.answer = bad_in_the_first_episode
    code, _ = run(server, episodes=2, report=tmp_path / "r.json", hold_timeout_s=0.0)
    report = json.loads((tmp_path / "r.json").read_text())
    assert [(e["steps"], e["guard_stops"]) for e in report["episodes"]] == [(1, 1), (200, 0)]
    assert code == 5


def test_guard_stop_outranks_a_record_that_could_not_be_written(server):
    server.policy.answer = lambda policy, o: iter([decision_for(o, [float("nan")])])
    process = command(server, "--record", "/dev/full", "--hold-timeout-s", "0", "--budget-s", "5")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "No space left on device" in errors


def test_server_lost_for_good_holds_then_stops_and_keeps_record_and_report(server, tmp_path):
    def die_at_the_tenth(policy, observation):
        if observation.tick == 10:
            threading.Thread(target=server.die).start()
            threading.Event().wait(0.3)
        yield from well_behaved(policy, observation)

    server.policy.answer = die_at_the_tenth
    code, _ = run(
        server, episodes=3, record=tmp_path / "run.mcap", report=tmp_path / "r.json", hold_timeout_s=0.5, budget_s=0.2
    )
    assert code == 4
    report = json.loads((tmp_path / "r.json").read_text())
    assert len(report["episodes"]) == 1
    assert report["episodes"][0]["guard_stops"] == 1
    _, *ticks, _ = read_record(tmp_path / "run.mcap")
    assert len(ticks) == report["ticks"]
    held = ticks[8].applied_action
    assert all(tick.applied_action == held for tick in ticks[9:-1])
    assert list(ticks[-1].applied_action) == [0.0]
    assert ticks[-1].problem.startswith("policy server at")


def test_server_that_comes_back_in_time_goes_on_driving(server, tmp_path):
    def die_at_the_tenth(policy, observation):
        if observation.tick == 10 and len(policy.opened) == 1:
            threading.Thread(target=lambda: (server.die(), server.start())).start()
            threading.Event().wait(0.3)
        yield from well_behaved(policy, observation)

    server.policy.answer = die_at_the_tenth
    code, _ = run(server, report=tmp_path / "r.json", hold_timeout_s=20.0, budget_s=0.2)
    report = json.loads((tmp_path / "r.json").read_text())
    assert code == 0
    assert report["episodes"][0]["steps"] == 200
    assert report["reconnects"] == 1
    assert report["guard"]["hold_ticks"] > 0
    assert report["late_ticks"] == report["guard"]["hold_ticks"]


def test_unreachable_server_exits_2_with_one_line(server):
    server.die()
    process = command(server)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == ""
    assert len(errors.strip().splitlines()) == 1
    assert server.address in errors


def test_selection_is_asked_for_shown_recorded_and_replayed(server, tmp_path):
    def select(policy, observation):
        decision = decision_for(observation, policy.act(observation.values))
        index = observation.tick % 4
        decision.decision.selected.CopyFrom(pb.Selected(rule=pb.RULE_BEST_CVAR, candidates=8, index=index, gain=0.5))
        yield decision

    server.policy.answer = select
    code, text = run(
        server, selection="best-cvar", candidates=8, report=tmp_path / "r.json", record=tmp_path / "run.mcap"
    )
    asked = pb.Selection(rule=pb.RULE_BEST_CVAR, candidates=8)
    assert code == 0
    assert server.policy.opened[0].selection == next(read_record(tmp_path / "run.mcap")).selection == asked
    assert json.loads((tmp_path / "r.json").read_text())["selection"] == {
        "ticks": 200, "share_departed": 0.75, "gain_mean": 0.5
    }  # fmt: skip
    assert "another action than the actor's in 75.0% of 200 decisions, expected gain 0.5" in text
    with PolicyClient(server.address) as client:
        replay(tmp_path / "run.mcap", client)
    assert {request.selection.SerializeToString() for request in server.policy.requests} == {asked.SerializeToString()}


def test_without_selection_none_is_asked_for_or_shown(server, tmp_path):
    _, text = run(server, report=tmp_path / "r.json", record=tmp_path / "run.mcap")
    assert not server.policy.opened[0].HasField("selection")
    assert not next(read_record(tmp_path / "run.mcap")).HasField("selection")
    assert json.loads((tmp_path / "r.json").read_text())["selection"] is None
    assert "selected" not in text


def test_overloaded_server_makes_ticks_late_and_the_last_action_held(server, tmp_path):
    def shed_every_second(policy, observation):
        if observation.tick % 2:
            yield from well_behaved(policy, observation)
        else:
            yield decision_for(observation, [], pb.DECISION_STATUS_OVERLOADED, "too many robots")

    server.policy.answer = shed_every_second
    code, _ = run(server, report=tmp_path / "r.json", record=tmp_path / "run.mcap", hold_timeout_s=20.0)
    report = json.loads((tmp_path / "r.json").read_text())
    _, *ticks, _ = read_record(tmp_path / "run.mcap")
    assert code == 0
    assert report["late_ticks"] == report["guard"]["hold_ticks"] == 100
    assert ticks[1].applied_action == ticks[0].applied_action
    assert ticks[1].guard_reason == "overloaded: too many robots"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interruption_ends_cleanly_with_everything_saved(server, tmp_path, number, code):
    process = command(
        server, "--episodes", "50", "--rate", "100", "--record", str(tmp_path / "run.mcap"), "--report",
        str(tmp_path / "r.json"),
    )  # fmt: skip
    wait_until(lambda: len(server.policy.observations) > 20, timeout_s=60)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == ""
    assert "interrupted" in output
    assert server.policy.closed_by_client.wait(5)
    report = json.loads((tmp_path / "r.json").read_text())
    ticks = [message for message in read_record(tmp_path / "run.mcap") if isinstance(message, record_pb2.Tick)]
    assert len(ticks) == report["ticks"] > 20
    assert (report["return_mean"] is None) == (report["ticks"] < 200), "no episode was finished"


def test_full_disk_while_recording_exits_3_after_the_whole_run(server, tmp_path):
    process = command(server, "--record", "/dev/full", "--report", str(tmp_path / "r.json"), "--budget-s", "5")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert errors.count("No space left on device") == 1
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["episodes"][0]["steps"] == 200
    assert report["dropped_records"] == 202


def test_rate_paces_the_ticks(server, tmp_path):
    run(server, rate=400.0, budget_s=None, report=tmp_path / "r.json", record=tmp_path / "run.mcap")
    head, *ticks, _ = read_record(tmp_path / "run.mcap")
    assert head.realtime
    assert head.tick_period_s == head.budget_s == 1 / 400
    first = ticks[0].scheduled_ns
    assert all((tick.scheduled_ns - first) % 2_500_000 == 0 for tick in ticks)
    assert all(tick.started_ns >= tick.scheduled_ns for tick in ticks)


def test_policy_from_another_task_with_the_same_contract_drives_with_a_warning(server, caplog):
    server.policy.description.environment = "SwingUp-v3"
    assert run(server)[0] == 0
    assert any("trained on SwingUp-v3, the robot is Pendulum-v1" in message for message in caplog.messages)


def test_refusals_come_before_moving(server, tmp_path):
    with pytest.raises(RequestRefusedError, match="one of scripted, got 'other'"):
        run(server, policy="other")
    (tmp_path / "run.mcap").write_bytes(b"precious")
    with pytest.raises(RecordError, match="new file"):
        run(server, record=tmp_path / "run.mcap")
    assert server.policy.opened == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"episodes": 0}, "--episodes must be at least 1, got 0"),
        ({"candidates": 1}, "--candidates must be 2 to 256, got 1"),
        ({"seed": -1}, "--seed must be 0 or more, got -1"),
        ({"rate": 0.0}, "--rate must be a finite number > 0"),
        ({"budget_s": float("nan")}, "--budget-s must be a finite number > 0"),
        ({"hold_timeout_s": -1.0}, "hold_timeout_s must be a finite number >= 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, expected):
    with pytest.raises(DriveConfigError, match=expected):
        DriveConfig(server="x", env="y", **settings)


def test_report_in_a_missing_directory_is_refused_before_the_run(tmp_path):
    with pytest.raises(DriveConfigError, match="existing directory"):
        DriveConfig(server="x", env="y", report=tmp_path / "no" / "r.json")


def test_importing_the_robot_side_never_imports_torch_or_the_server():
    program = (
        "import sys, pkgutil, importlib, sim_bridge\n"
        "for module in pkgutil.walk_packages(sim_bridge.__path__, 'sim_bridge.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print([name for name in ('torch', 'onnxruntime', 'server', 'dst_core') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == "[]\n"


def test_unreachable_error_is_a_connection_error():
    assert issubclass(ServerUnreachableError, ConnectionError)
