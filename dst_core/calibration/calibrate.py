"""Calibrate the law of a finished run: positions of corrected quantiles and thresholds from held-out episodes, scores from fresh ones.

The actor is frozen and acts without exploration noise, in the task with its perturbations. No episode is one of training, evaluation or
driving, and no score comes from an episode that set an offset or a threshold.
"""

import contextlib

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from dst_core.calibration.by_episode import draw_ticks, mean_and_std, renumbered
from dst_core.calibration.conformal import Numbers, corrected, positions, require_episodes, std_floor
from dst_core.calibration.forecasts import Forecasts, forecasts
from dst_core.calibration.result import Calibration, CalibrationConfig, Energy, Scores
from dst_core.calibration.rollouts import FIRST_CALIBRATION_SEED, FIRST_SCALE_SEED, FIRST_TEST_SEED, Ticks, roll_out
from dst_core.calibration.scores import central_columns, energy_score, ensemble_crps, pit_histogram, score
from dst_core.calibration.thresholds import require_false_alarm_rate, threshold, ticks_without_a_fall
from dst_core.calibration.warning import warnings
from dst_core.critic_learner import CriticLearner
from dst_core.graphs import UncertaintyGraph
from dst_core.run import Run
from dst_core.served_law import fingerprint, served_law
from dst_core.summary import RETURN_LEVELS
from dst_core.world_models.point_mass import simulator_of, true_joint_samples
from sim_bridge.tasks import TaskError, make_task

SCALE_EPISODES = 20
ENERGY_TICKS = 48
ENERGY_SAMPLES = 32
TRUE_TICKS_AT_ONCE = 4  # a whole episode of every sample is kept for its gradient


def calibrate(run: Run, law: UncertaintyGraph, config: CalibrationConfig, *, progress: Progress) -> Calibration:
    """Measure and correct a law.

    Args:
        run: finished, on the CPU.
        law: of that run (`dst_core.served_law.served_law`).
        config: how much to measure.
        progress: shows the episodes; its console is told how many there will be.

    Raises:
        CalibrationError: if there are too few episodes for the rarest level or the false-alarm rate, an interval is not served, or the
            task's returns cannot be known.
        TaskError: if the task cannot be built.
    """
    require_episodes(config.episodes, RETURN_LEVELS)
    require_false_alarm_rate(config.false_alarm_rate, config.episodes)
    central_columns(config.levels, RETURN_LEVELS)
    discount = run.config.agent.discount
    horizon = max(round(config.failure_horizon_s / run.contract.control_period_s), 1)

    progress.console.print(
        f"{config.episodes} episodes to calibrate on, {config.test_episodes} to test on", highlight=False
    )
    scale, held_out, test = (
        _episodes(run, range(first, first + count), horizon=horizon, progress=progress, title=title)
        for first, count, title in (
            (FIRST_SCALE_SEED, SCALE_EPISODES, "episodes for the scale"),
            (FIRST_CALIBRATION_SEED, config.episodes, "calibration episodes"),
            (FIRST_TEST_SEED, config.test_episodes, "test episodes"),
        )
    )
    predicted, said = forecasts(law, held_out), forecasts(law, test)
    samples = said.return_samples.shape[1]
    floor = std_floor(scale.realised, scale.episode)
    found = positions(
        held_out.realised,
        predicted.return_quantiles_raw,
        predicted.return_std,
        held_out.episode,
        RETURN_LEVELS,
        floor=floor,
    )
    moved = corrected(said.return_quantiles_raw, said.return_std, found, RETURN_LEVELS, floor=floor)

    def scores(quantiles: Numbers, mean: Numbers | None) -> Scores:
        return score(
            test.realised,
            quantiles,
            mean,
            test.episode,
            quantile_levels=RETURN_LEVELS,
            levels=config.levels,
        )

    assert isinstance(run.agent.critics, CriticLearner)
    of_training = served_law(run, samples=samples, critic=run.agent.critics.critic)
    training = forecasts(of_training, test)
    calm, test_calm, with_falls = ticks_without_a_fall(held_out, test, horizon=horizon, rate=config.false_alarm_rate)
    disagreement, distance = (
        threshold(
            getattr(predicted, name)[calm],
            renumbered(held_out.episode[calm]),
            rate=config.false_alarm_rate,
            test_signal=getattr(said, name)[test_calm],
            test_episode=renumbered(test.episode[test_calm]),
        )
        for name in ("critic_disagreement", "data_distance")
    )
    warned, no_warnings = warnings(_signals(said), test.steps_to_fall <= horizon, test)
    realised_mean, realised_std = mean_and_std(test.realised, test.episode)
    return Calibration(
        fingerprint=fingerprint(run, law),
        environment=run.config.env,
        perturbations=run.config.perturb,
        sample_count=samples,
        discount=discount,
        episodes=config.episodes,
        test_episodes=config.test_episodes,
        first_seed=FIRST_CALIBRATION_SEED,
        first_test_seed=FIRST_TEST_SEED,
        ticks=len(held_out.realised),
        test_ticks=len(test.realised),
        quantile_levels=RETURN_LEVELS,
        positions=tuple(found.tolist()),
        std_floor=floor,
        levels=tuple(config.levels),
        raw=scores(said.return_quantiles_raw, said.return_mean),
        corrected=scores(moved, None),
        training_critics=scores(training.return_quantiles_raw, training.return_mean),
        crps_samples=ensemble_crps(test.realised, said.return_samples, test.episode),
        realised_mean=realised_mean,
        realised_std=realised_std,
        pit=pit_histogram(test.realised, said.return_samples, test.episode),
        energy=_energy(run, law, test),
        false_alarm_rate=config.false_alarm_rate,
        critic_disagreement=disagreement,
        data_distance=distance,
        thresholds_with_falls=with_falls,
        falls=int(test.fell.sum()),
        failure_horizon_s=config.failure_horizon_s,
        failure_horizon_steps=horizon,
        warnings=warned,
        no_warnings=no_warnings,
    )


def _episodes(run: Run, seeds: range, *, horizon: int, progress: Progress, title: str) -> Ticks:
    task = progress.add_task(title, total=len(seeds))

    def policy(observation: NDArray[np.float32]) -> NDArray[np.float32]:
        return run.agent.act(torch.from_numpy(observation)).numpy()

    return roll_out(
        policy,
        environment=run.config.env,
        perturbations=run.config.perturb,
        seeds=seeds,
        discount=run.config.agent.discount,
        horizon=horizon,
        advance=lambda: progress.advance(task),
    )


def _signals(said: Forecasts) -> dict[str, Numbers]:
    """Higher where the policy has more to fear or knows less."""
    return {
        "-return_cvar": -said.return_cvar,
        "1 - gradient_resultant_length": 1 - said.gradient_resultant_length,
        "critic_disagreement": said.critic_disagreement,
        "data_distance": said.data_distance,
        "-return_mean": -said.return_mean,
    }


def _energy(run: Run, law: UncertaintyGraph, ticks: Ticks) -> Energy | None:
    """Of a few ticks drawn at random, in the one task whose true gradients are known."""
    with contextlib.closing(make_task(run.config.env, perturbations=run.config.perturb)) as env:
        try:
            model = simulator_of(env)
        except TaskError:
            return None
    rows = draw_ticks(ticks.episode, ENERGY_TICKS)
    observation, action = (torch.from_numpy(values[rows]) for values in (ticks.observation, ticks.action))
    with torch.no_grad():
        summary = law(observation, action)
    predicted = torch.cat([summary.return_samples.unsqueeze(-1), summary.gradient_samples], -1).double().numpy()
    chosen = np.linspace(0, predicted.shape[1] - 1, min(ENERGY_SAMPLES, predicted.shape[1])).round().astype(np.int64)
    generator = torch.Generator().manual_seed(0)
    draws = []
    for start in range(0, len(rows), TRUE_TICKS_AT_ONCE):
        drawn = true_joint_samples(
            observation[start : start + TRUE_TICKS_AT_ONCE],
            action[start : start + TRUE_TICKS_AT_ONCE],
            model=model,
            actor=run.agent.actor,
            discount=run.config.agent.discount,
            samples=1 + len(chosen),
            generator=generator,
        )
        draws.append(torch.cat([drawn.returns.unsqueeze(-1), drawn.action_gradients], -1))
    true = torch.cat(draws).double().numpy()
    return energy_score(true[:, 0], predicted[:, chosen], true[:, 1:])
