"""dst-calibrate: what it finds in a run is what its parts find in plain steps, and bad input leaves nothing behind."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.progress import Progress

from dst_core.agent_config import AgentConfig
from dst_core.calibration.app import main
from dst_core.calibration.by_episode import renumbered
from dst_core.calibration.calibrate import calibrate
from dst_core.calibration.conformal import bound_above, corrected, std_floor
from dst_core.calibration.forecasts import forecasts
from dst_core.calibration.result import CALIBRATION_FILE, Calibration, CalibrationConfig
from dst_core.calibration.rollouts import FIRST_CALIBRATION_SEED, FIRST_SCALE_SEED, FIRST_TEST_SEED, Ticks, roll_out
from dst_core.config import TrainConfig
from dst_core.errors import CalibrationError
from dst_core.presets import preset_of
from dst_core.run import Run, load_run
from dst_core.served_law import fingerprint, served_law
from dst_core.summary import RETURN_LEVELS
from dst_core.train import train
from tests.dst_core.commands import call

AGENT = AgentConfig(hidden=16, noise_size=4, latent=2, samples=3, discount=0.95)
SMALL = CalibrationConfig(episodes=40, test_episodes=40, false_alarm_rate=0.05, failure_horizon_s=0.12)
SAMPLES = 8


def trained(out: Path, environment: str, **choices: object) -> Path:
    common = TrainConfig(
        env=environment,
        steps=80,
        warmup_steps=60,
        batch=16,
        evaluation_episodes=1,
        forecast_updates=5,
        device="cpu",
        agent=AGENT,
        out=out,
    )
    train(dataclasses.replace(common, **choices))
    return out


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that falls soon."""
    return trained(tmp_path_factory.mktemp("run") / "run", "InvertedPendulum-v5", perturb=("actuation=0.1",))


@pytest.fixture(scope="module")
def point_mass(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run") / "run", "PointMass2-v0")


def calibrated(directory: Path, config: CalibrationConfig = SMALL) -> tuple[Run, Calibration]:
    run = load_run(directory)
    return run, calibrate(run, served_law(run, samples=SAMPLES), config, progress=Progress(disable=True))


@pytest.fixture(scope="module")
def found(pendulum: Path) -> tuple[Run, Calibration]:
    return calibrated(pendulum)


def test_what_is_found_is_what_its_parts_find(found: tuple[Run, Calibration]) -> None:
    run, calibration = found
    law = served_law(run, samples=SAMPLES)

    def policy(observation: np.ndarray) -> np.ndarray:
        return run.agent.act(torch.from_numpy(observation)).numpy()

    def ticks(first: int, count: int) -> Ticks:
        return roll_out(
            policy,
            environment="InvertedPendulum-v5",
            perturbations=("actuation=0.1",),
            seeds=range(first, first + count),
            discount=0.95,
            horizon=3,
        )

    scale, test = ticks(FIRST_SCALE_SEED, 20), ticks(FIRST_TEST_SEED, 40)
    assert calibration.std_floor == std_floor(scale.realised, scale.episode)
    with torch.no_grad():
        said = law(torch.from_numpy(test.observation), torch.from_numpy(test.action))
    raw = said.return_quantiles_raw.double().numpy()
    std, places = said.return_std.double().numpy(), np.array(calibration.positions)
    moved = corrected(raw, std, places, RETURN_LEVELS, floor=calibration.std_floor)
    for scores, quantiles in ((calibration.raw, raw), (calibration.corrected, moved)):
        inside = (quantiles[:, 1] <= test.realised) & (test.realised <= quantiles[:, 7])
        by_episode = [inside[test.episode == index].mean() for index in range(40)]
        assert scores.coverage[2].value == pytest.approx(np.mean(by_episode))
    assert calibration.fingerprint == fingerprint(run, law)
    assert calibration.sample_count == SAMPLES
    assert calibration.test_ticks == len(test.realised)
    assert calibration.falls == 40
    assert calibration.failure_horizon_steps == 3
    assert (calibration.first_seed, calibration.first_test_seed) == (FIRST_CALIBRATION_SEED, FIRST_TEST_SEED)
    assert [warning.signal for warning in calibration.warnings] == [
        "-return_cvar",
        "1 - gradient_resultant_length",
        "critic_disagreement",
        "data_distance",
        "-return_mean",
    ]
    labels = test.steps_to_fall <= 3
    higher, lower = -said.return_cvar.numpy()[labels], -said.return_cvar.numpy()[~labels]
    each = (test.length / np.bincount(test.episode))[test.episode]
    won = (higher[:, None] > lower) + 0.5 * (higher[:, None] == lower)
    expected = np.average(won, weights=each[labels][:, None] * each[~labels])
    assert calibration.warnings[0].auc.value == pytest.approx(expected)
    calm = test.steps_to_fall > 3
    alarms = said.data_distance.numpy() > calibration.data_distance.value
    by_episode = [alarms[calm & (test.episode == index)].mean() for index in np.unique(test.episode[calm])]
    assert calibration.data_distance.alarm_rate.value == pytest.approx(np.mean(by_episode))
    assert calibration.thresholds_with_falls is None
    weights = [1 / (test.episode == index).sum() for index in test.episode]
    mean = np.average(test.realised, weights=weights)
    assert calibration.realised_mean == pytest.approx(mean)
    assert calibration.realised_std == pytest.approx(np.average((test.realised - mean) ** 2, weights=weights) ** 0.5)
    assert (calibration.raw.centre, calibration.corrected.centre) == ("mean", "median")


def test_mark_of_a_policy_that_falls_is_that_of_its_ticks_before(
    pendulum: Path, found: tuple[Run, Calibration]
) -> None:
    run, calibration = found
    held_out = roll_out(
        lambda observation: run.agent.act(torch.from_numpy(observation)).numpy(),
        environment="InvertedPendulum-v5",
        perturbations=("actuation=0.1",),
        seeds=range(FIRST_CALIBRATION_SEED, FIRST_CALIBRATION_SEED + 40),
        discount=0.95,
        horizon=3,
    )
    signal = forecasts(served_law(run, samples=SAMPLES), held_out).data_distance
    calm = held_out.steps_to_fall > 3
    expected = bound_above(signal[calm], renumbered(held_out.episode[calm]), 0.95)
    assert calibration.data_distance.value == expected
    assert expected < bound_above(signal, held_out.episode, 0.95)
    _, hurried = calibrated(pendulum, dataclasses.replace(SMALL, failure_horizon_s=100.0))
    assert hurried.thresholds_with_falls is not None
    assert hurried.data_distance.value == bound_above(signal, held_out.episode, 0.95)


def test_law_of_an_untrained_critic_is_off_and_corrected(found: tuple[Run, Calibration]) -> None:
    _, calibration = found
    for scores in (calibration.raw, calibration.training_critics):
        assert scores.coverage[2].value < 0.5
    assert calibration.corrected.coverage[2].value > 0.75
    assert calibration.corrected.crps.value < calibration.raw.crps.value
    assert abs(calibration.corrected.bias.value) < abs(calibration.raw.bias.value)
    assert calibration.training_critics.bias != calibration.raw.bias


def test_calibration_can_be_repeated_and_kept(pendulum: Path, found: tuple[Run, Calibration]) -> None:
    _, first = found
    assert calibrated(pendulum)[1] == first
    assert Calibration.from_json(first.to_json()) == first


def test_energy_score_is_told_where_true_gradients_are_known_and_nowhere_else(
    point_mass: Path, found: tuple[Run, Calibration]
) -> None:
    _, calibration = calibrated(point_mass)
    assert calibration.energy is not None
    assert calibration.energy.law > 1.1 * calibration.energy.truth > 0
    assert calibration.falls == 0
    assert calibration.warnings == ()
    assert calibration.no_warnings is not None
    assert calibration.no_warnings.startswith("0 of 40 test episodes fell, and 0 have a kept tick")
    assert found[1].energy is None


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"episodes": 38}, "38 calibration episodes are too few.*at least 39"),
        (
            {"false_alarm_rate": 0.01},
            "--false-alarm-rate 0.01 is too rare for 40.* 0.0244 or more.*--episodes 99 or more",
        ),
        ({"levels": (0.7, 0.9)}, r"central intervals between served quantiles, 0\.5, 0\.8, 0\.9, 0\.95, got 0\.7"),
    ],
)
def test_what_cannot_be_told_is_refused_before_an_episode_is_run(
    found: tuple[Run, Calibration], choice: dict[str, object], words: str
) -> None:
    run, _ = found
    progress = Progress(disable=True)
    with pytest.raises(CalibrationError, match=words):
        calibrate(run, served_law(run, samples=SAMPLES), dataclasses.replace(SMALL, **choice), progress=progress)
    assert not progress.tasks


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "dst_core.calibration.app", *map(str, arguments)]


def test_command_writes_the_calibration_and_says_what_it_found(
    pendulum: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    choices = ["--episodes", "40", "--test-episodes", "40", "--false-alarm-rate", "0.05", "--samples", "8"]
    assert call(main, pendulum, *choices) == 0
    shown = capsys.readouterr()
    calibration = Calibration.read(pendulum)
    (pendulum / CALIBRATION_FILE).unlink()
    assert calibration is not None
    assert (calibration.episodes, calibration.sample_count, calibration.false_alarm_rate) == (40, 8, 0.05)
    assert f"{calibration.corrected.coverage[2].value:.1%}" in shown.out
    assert f"{calibration.data_distance.value:.3g}" in shown.out
    for warning in calibration.warnings:
        assert warning.signal in shown.out
    assert "Traceback" not in shown.err


def unfinished(directory: Path) -> Path:
    plain = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**plain, "steps": 200}))
    return directory


BAD_INPUT = {
    "nothing": "no-run",
    "unfinished": "not finished",
    "td3": "td3, which learns no law",
    "samples": "multiple of the run's 2 critics",
    "too few": "at least 39",
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_with_one_line_and_writes_nothing(
    pendulum: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    arguments: list[str | Path]
    match case:
        case "nothing":
            arguments = [tmp_path / "no-run"]
        case "unfinished":
            out = trained(tmp_path / "run", "InvertedPendulum-v5")
            arguments = [unfinished(out)]
        case "td3":
            arguments = [
                trained(tmp_path / "run", "InvertedPendulum-v5", agent=AgentConfig(algorithm="td3", hidden=16))
            ]
        case "samples":
            arguments = [pendulum, "--samples", "7"]
        case _:
            arguments = [pendulum, "--episodes", "20"]
    capsys.readouterr()
    assert call(main, *arguments) == 2
    errors = capsys.readouterr().err
    assert BAD_INPUT[case] in errors
    assert errors.startswith("dst-calibrate: ")
    assert len(errors.splitlines()) == 1
    assert not (Path(arguments[0]) / CALIBRATION_FILE).exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_calibration_interrupted_in_its_episodes_leaves_nothing_behind(
    point_mass: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    before = sorted(point_mass.iterdir())
    monkeypatch.setattr("dst_core.calibration.calibrate.roll_out", interrupted)
    assert call(main, point_mass, "--episodes", 100) == code
    assert capsys.readouterr().err.splitlines()[-1] == "dst-calibrate: interrupted; nothing was written"
    assert sorted(point_mass.iterdir()) == before


def test_interrupted_process_of_a_calibration_leaves_nothing_behind(point_mass: Path) -> None:
    before = sorted(point_mass.iterdir())
    process = subprocess.Popen(
        command(point_mass, "--episodes", "100000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "100000 episodes to calibrate on, 400 to test on\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert sorted(point_mass.iterdir()) == before


SLOW_EPISODES = 1500
NOISY_TASKS = {
    "PointMass2-v0": {"perturb": (), "steps": 3000},
    "PendulumSwingUp-v0": {"perturb": ("actuation=0.1",), "steps": 3000},
    "InvertedDoublePendulum-v5": {"perturb": ("dynamics=0.05",), "steps": 3000},
}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("environment", NOISY_TASKS)
def test_corrected_90_percent_interval_holds_within_2_points_on_fresh_episodes(
    tmp_path: Path, environment: str
) -> None:
    """Both samples of episodes together leave a standard deviation of about 0.7 points."""
    preset = preset_of(environment)
    agent = dataclasses.replace(preset.agent, hidden=64, samples=6)
    train(
        dataclasses.replace(
            preset,
            env=environment,
            warmup_steps=500,
            batch=128,
            evaluate_every=1000,
            evaluation_episodes=2,
            forecast_updates=500,
            compile="off",
            precision="float32",
            device="cpu",
            agent=agent,
            out=tmp_path / "run",
            **NOISY_TASKS[environment],
        )
    )
    config = CalibrationConfig(episodes=SLOW_EPISODES, test_episodes=SLOW_EPISODES)
    run = load_run(tmp_path / "run")
    calibration = calibrate(run, served_law(run, samples=32), config, progress=Progress(disable=True))
    for level, raw, fixed in zip(
        calibration.levels, calibration.raw.coverage, calibration.corrected.coverage, strict=True
    ):
        print(
            f"{environment} {level:.0%}: raw {raw.value:.3f}, corrected {fixed.value:.3f} ({fixed.low:.3f} to {fixed.high:.3f})"
        )
    coverage = calibration.corrected.coverage[calibration.levels.index(0.9)]
    assert abs(coverage.value - 0.9) <= 0.02
    assert math.isfinite(calibration.corrected.crps.value)
