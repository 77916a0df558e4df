"""Realised returns against plain loops and closed forms, and which episodes and ticks they are of."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.utils.seeding import np_random

from deploy.demo import FIRST_DRIVE_SEED
from dst_core.calibration.by_episode import episode_means
from dst_core.calibration.rollouts import (
    FIRST_CALIBRATION_SEED,
    FIRST_SCALE_SEED,
    FIRST_TEST_SEED,
    KEPT_TICKS,
    NEGLECTED,
    Ticks,
    followed_steps,
    realised_returns,
    roll_out,
)
from dst_core.config import MAX_SEED
from dst_core.episode import EPISODES_PER_SEED, episode_seed
from dst_core.errors import CalibrationError
from dst_core.evaluate import evaluation_seeds
from dst_core.world_models.point_mass import PointMassSimulator, true_joint_samples
from sim_bridge.tasks import make_task
from tests.dst_core.nearest_location import NearestLocation

DISCOUNT = 0.9
LIMIT = 60


class Countdown(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observes the steps taken, is paid the seed's last digit each step, and ends after `length` steps."""

    observation_space = Box(0, np.inf, (1,), np.float64)
    action_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, *, length: float = math.inf, own_limit: float = math.inf, reward: float | None = None) -> None:
        self.length, self.own_limit, self.reward = length, own_limit, reward
        self.taken, self.paid = 0, 0.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.taken, self.paid = 0, float(seed % 10) if self.reward is None else self.reward
        return np.zeros(1), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.taken += 1
        return (
            np.array([float(self.taken)]),
            self.paid,
            self.taken >= self.length,
            self.taken >= self.own_limit,
            {},
        )


@pytest.fixture(autouse=True)
def tasks() -> Iterator[None]:
    for name, limit, choices in (
        ("Endless", LIMIT, {}),
        ("Ending", LIMIT, {"length": 7}),
        ("FallsLate", LIMIT, {"length": LIMIT + 4}),
        ("Limitless", None, {"length": 30}),
        ("NeverEnds", None, {}),
        ("OwnLimit", LIMIT, {"own_limit": 5}),
        ("NotFinite", LIMIT, {"reward": math.nan}),
    ):
        gymnasium.register(f"{name}-v0", Countdown, max_episode_steps=limit, kwargs=choices)
    yield
    for name in ("Endless", "Ending", "FallsLate", "Limitless", "NeverEnds", "OwnLimit", "NotFinite"):
        del gymnasium.registry[f"{name}-v0"]


def still(observation: np.ndarray) -> np.ndarray:
    return np.zeros((len(observation), 1), np.float32)


def ticks(environment: str, *, seeds: range = range(1, 4), discount: float = DISCOUNT, horizon: int = 5) -> Ticks:
    return roll_out(still, environment=environment, perturbations=(), seeds=seeds, discount=discount, horizon=horizon)


def test_steady_reward_is_worth_the_closed_form_at_every_tick_up_to_the_limit() -> None:
    found = ticks("Endless-v0")
    np.testing.assert_allclose(found.realised, (1 + found.episode) / (1 - DISCOUNT), rtol=1e-12)
    assert found.observation.max() == LIMIT - 1
    assert np.isinf(found.steps_to_fall).all()
    assert not found.fell.any()


def test_return_up_to_a_terminal_state_is_the_closed_form_of_what_was_left() -> None:
    found = ticks("Ending-v0")
    left = 7 - found.observation[:, 0].astype(np.float64)
    np.testing.assert_allclose(found.realised, (1 + found.episode) * (1 - DISCOUNT**left) / (1 - DISCOUNT))
    np.testing.assert_array_equal(found.steps_to_fall, left)
    assert found.fell.all()


def test_fall_beyond_the_time_limit_ends_the_return_but_is_no_fall_of_the_episode() -> None:
    found = ticks("FallsLate-v0")
    left = LIMIT + 4 - found.observation[:, 0].astype(np.float64)
    np.testing.assert_allclose(found.realised, (1 + found.episode) * (1 - DISCOUNT**left) / (1 - DISCOUNT))
    np.testing.assert_array_equal(found.steps_to_fall, left)
    assert not found.fell.any()


def test_task_without_a_limit_is_followed_to_its_end_and_refused_where_there_is_none() -> None:
    assert ticks("Limitless-v0").fell.all()
    with pytest.raises(CalibrationError, match=r"NeverEnds-v0 has no time limit.*max_episode_steps"):
        ticks("NeverEnds-v0", seeds=range(1))


@pytest.mark.filterwarnings("ignore:.*reward is a NaN")
@pytest.mark.parametrize(
    ("environment", "words"), [("OwnLimit-v0", "cuts its episodes off itself"), ("NotFinite-v0", "not finite.*seed 1")]
)
def test_returns_that_cannot_be_known_are_refused(environment: str, words: str) -> None:
    with pytest.raises(CalibrationError, match=words):
        ticks(environment)


@pytest.mark.parametrize("discount", [0.01, 0.5, 0.9, 0.99])
def test_steps_followed_leave_half_a_percent(discount: float) -> None:
    steps = followed_steps(discount)
    assert discount**steps <= NEGLECTED < discount ** (steps - 1)


def test_realised_returns_are_those_of_a_double_loop() -> None:
    rewards = np.random.default_rng(0).standard_normal(50).tolist()
    for terminated, whole in ((True, 50), (True, 30), (False, 30)):
        found = realised_returns(
            rewards[: 50 if not terminated else whole], ticks=30, discount=0.8, terminated=terminated
        )
        for tick in range(30):
            value = sum(0.8 ** (step - tick) * rewards[step] for step in range(tick, 30))
            if whole == 50 or not terminated:
                followed = sum(0.8 ** (step - 30) * rewards[step] for step in range(30, 50))
                value += 0.8 ** (30 - tick) * followed / (1 if terminated else 1 - 0.8**20)
            assert found[tick] == pytest.approx(value)


def test_ticks_are_those_of_a_plain_loop_in_the_perturbed_task() -> None:
    perturbations = ("actuation=0.1", "delay=1")
    seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + 20)  # more than run at once

    def policy(observation: np.ndarray) -> np.ndarray:
        return (-3.0 * observation[:, 1:2]).astype(np.float32)

    found = roll_out(
        policy, environment="InvertedPendulum-v5", perturbations=perturbations, seeds=seeds, discount=0.9, horizon=5
    )
    env = make_task("InvertedPendulum-v5", perturbations=perturbations, time_limit=False)
    for index, seed in enumerate(seeds):
        observation, _ = env.reset(seed=seed)
        observations, actions, rewards, terminated = [], [], [], False
        while not terminated:
            observations.append(observation.astype(np.float32))
            actions.append(policy(observations[-1][None])[0])
            observation, reward, terminated, _, _ = env.step(actions[-1])
            rewards.append(float(reward))
        own = found.episode == index
        assert own.sum() == min(len(rewards), KEPT_TICKS)
        kept = [len(rewards) - int(left) for left in found.steps_to_fall[own]]
        assert kept == sorted(set(kept))
        np.testing.assert_array_equal(found.observation[own], np.stack(observations)[kept])
        np.testing.assert_array_equal(found.action[own], np.stack(actions)[kept])
        plain = [sum(0.9 ** (step - tick) * rewards[step] for step in range(tick, len(rewards))) for tick in kept]
        np.testing.assert_allclose(found.realised[own], plain)
    env.close()


def test_kept_ticks_are_a_random_choice_that_a_seed_repeats() -> None:
    first, again = ticks("Endless-v0", seeds=range(300)), ticks("Endless-v0", seeds=range(300))
    np.testing.assert_array_equal(first.observation, again.observation)
    assert np.bincount(first.episode).tolist() == [KEPT_TICKS] * 300
    often = np.bincount(first.observation[:, 0].astype(int), minlength=LIMIT) / 300
    np.testing.assert_allclose(often, KEPT_TICKS / LIMIT, atol=5 * 0.37 / math.sqrt(300))
    other = ticks("Endless-v0", seeds=range(10, 310))
    assert not np.array_equal(first.observation, other.observation)


def test_kept_ticks_are_drawn_from_another_stream_than_the_task_draws_from() -> None:
    found = ticks("Endless-v0", seeds=range(20))
    for index in range(20):
        task, _ = np_random(index)
        same_stream = np.sort(task.choice(LIMIT, KEPT_TICKS, replace=False))
        assert not np.array_equal(found.observation[found.episode == index, 0], same_stream)


@pytest.mark.parametrize(("environment", "length"), [("Endless-v0", LIMIT), ("FallsLate-v0", LIMIT), ("Ending-v0", 7)])
def test_length_counts_all_steps_up_to_the_limit_kept_or_not(environment: str, length: int) -> None:
    assert ticks(environment).length.tolist() == [length] * 3


def test_seeds_are_no_ones_elses() -> None:
    most = 1_000_000
    spans = [
        range(episode_seed(0, 0), episode_seed(MAX_SEED, EPISODES_PER_SEED)),
        range(min(evaluation_seeds(1)), max(evaluation_seeds(most)) + 1),
        range(FIRST_DRIVE_SEED, FIRST_DRIVE_SEED + most),
        range(FIRST_SCALE_SEED, FIRST_SCALE_SEED + most),
        range(FIRST_CALIBRATION_SEED, FIRST_CALIBRATION_SEED + most),
        range(FIRST_TEST_SEED, FIRST_TEST_SEED + most),
    ]
    for before, after in pairwise(sorted(spans, key=lambda span: span.start)):
        assert before.stop <= after.start


def test_task_without_its_time_limit_goes_on() -> None:
    for limited in (True, False):
        env = make_task("PointMass2-v0", time_limit=limited)
        env.reset(seed=0)
        cut = [env.step(np.zeros(2, np.float32))[3] for _ in range(50)]
        assert cut[-1] == limited
        env.close()


def test_realised_returns_have_the_law_of_the_known_simulator() -> None:
    """At every tick, also of those just before the time limit, they fall anywhere among true samples."""
    model = PointMassSimulator(locations=2)
    actor = NearestLocation(model.positions)
    found = roll_out(
        lambda observation: actor(torch.from_numpy(observation)).numpy(),
        environment="PointMass2-v0",
        perturbations=(),
        seeds=range(150),
        discount=DISCOUNT,
        horizon=5,
    )
    one_in_seven = np.arange(len(found.realised)) % 7 == 0
    samples = true_joint_samples(
        torch.from_numpy(found.observation[one_in_seven]),
        torch.from_numpy(found.action[one_in_seven]),
        model=model,
        actor=actor,
        discount=DISCOUNT,
        samples=19,
        generator=torch.Generator().manual_seed(0),
    ).returns.numpy()
    rank = (samples < found.realised[one_in_seven][:, None]).sum(1)
    episode = found.episode[one_in_seven]
    late = np.tile(np.arange(KEPT_TICKS) >= 40, 150)[one_in_seven]
    for least, most, share in ((0, 1, 0.1), (18, 19, 0.1), (5, 14, 0.5)):
        within = ((least <= rank) & (rank <= most)).astype(float)
        error = episode_means(within, episode).std() / math.sqrt(150)
        assert abs(within.mean() - share) < 4 * error
        assert abs(within[late].mean() - share) < 4 * math.sqrt(share / late.sum())
