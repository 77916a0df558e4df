"""Held-out episodes of the perturbed training task, and the discounted return that was realised from every tick."""

import contextlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

from dst_core.calibration.by_episode import Array, Indices
from dst_core.errors import CalibrationError
from dst_core.evaluate import MOST_STEPS
from sim_bridge.tasks import make_task
from sim_bridge.tasks.perturbations import Environment, task_name

FIRST_SCALE_SEED = 2_104_000_000
FIRST_CALIBRATION_SEED = 2_105_000_000
FIRST_TEST_SEED = 2_110_000_000
NEGLECTED = 0.005
"""Share of a return at the time limit that lies beyond the steps followed."""
KEPT_TICKS = 50
LOCKSTEP = 16
Observations = NDArray[np.float32]
Policy = Callable[[Observations], NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """R ticks of K episodes."""

    episode: Indices
    """(R,) see `by_episode`"""
    observation: Observations
    """(R, S)"""
    action: NDArray[np.float32]
    """(R, A) what the policy did there"""
    realised: Array
    """(R,) discounted return from there on, in units of reward"""
    steps_to_fall: Array
    """(R,) steps until a terminal state, infinite where none was met"""
    fell: NDArray[np.bool_]
    """(K,) whether the episode ended in a terminal state"""
    length: Array
    """(K,) steps until a terminal state or the time limit, kept or not"""


class _Kept(NamedTuple):
    observation: Observations
    action: NDArray[np.float32]
    realised: Array
    steps_to_fall: Array
    fell: bool
    length: int


def followed_steps(discount: float) -> int:
    """Steps after which at most 0.5 % of a steady stream of discounted rewards is left."""
    return math.ceil(math.log(NEGLECTED) / math.log(discount))


def roll_out(
    policy: Policy,
    *,
    environment: str,
    perturbations: Sequence[str],
    seeds: Sequence[int],
    discount: float,
    horizon: int,
    advance: Callable[[], None] = lambda: None,
) -> Ticks:
    """One episode per seed without exploration noise, of which up to 50 ticks are kept, drawn at random.

    An episode that reaches its time limit is followed beyond it (`followed_steps`, at least `horizon`), so that every tick before the
    limit has its whole return.

    Args:
        policy: observations (N, S) to actions (N, A).
        environment: Gymnasium id.
        perturbations: as in training.
        seeds: of the episodes.
        discount: per step, in (0, 1).
        horizon: steps within which falls are looked for.
        advance: called after every episode.

    Raises:
        TaskError: if the task cannot be built.
        CalibrationError: if episodes do not end, or the returns cannot be known.
    """
    kept: dict[int, _Kept] = {}
    waiting = iter(enumerate(seeds))
    with contextlib.ExitStack() as stack:
        running: list[tuple[int, Environment, Generator[Observations, NDArray[np.float32], _Kept]]] = []
        observations: list[Observations] = []

        def begin(env: Environment) -> None:
            for index, seed in waiting:
                episode = _episode(env, seed, discount=discount, follow=max(followed_steps(discount), horizon))
                running.append((index, env, episode))
                observations.append(next(episode))
                return

        for _ in range(min(LOCKSTEP, len(seeds))):
            env = make_task(environment, perturbations=perturbations, time_limit=False)
            stack.callback(env.close)
            begin(env)
        while running:
            actions = policy(np.stack(observations))
            stepped, running, observations = running, [], []
            ended = []
            for (index, env, episode), action in zip(stepped, actions, strict=True):
                try:
                    observation = episode.send(action)
                except StopIteration as end:
                    kept[index] = end.value
                    ended.append(env)
                    advance()
                else:
                    running.append((index, env, episode))
                    observations.append(observation)
            for env in ended:
                begin(env)
    return _together([kept[index] for index in range(len(seeds))])


def _episode(
    env: Environment, seed: int, *, discount: float, follow: int
) -> Generator[Observations, NDArray[np.float32], _Kept]:
    """Give observations (S,), be sent actions (A,)."""
    limit = gymnasium.spec(task_name(env)).max_episode_steps
    ordinary = MOST_STEPS if limit is None else limit
    observations, actions = [], []
    rewards: list[float] = []
    observation, _ = env.reset(seed=seed)
    terminated = False
    while not terminated and len(rewards) < ordinary + follow:
        if limit is None and len(rewards) == MOST_STEPS:
            raise CalibrationError(
                f"{task_name(env)} has no time limit and an episode has not ended after {MOST_STEPS} steps; "
                "register the task with max_episode_steps"
            )
        given = observation.astype(np.float32)
        action = yield given
        observation, reward, terminated, truncated, _ = env.step(action)
        if truncated and not terminated:
            raise CalibrationError(
                f"{task_name(env)} cuts its episodes off itself, so the returns beyond cannot be known; "
                "register it with max_episode_steps instead"
            )
        if len(rewards) < ordinary:
            observations.append(given)
            actions.append(action)
        rewards.append(float(reward))
    ticks = min(len(rewards), ordinary)
    realised = realised_returns(rewards, ticks=ticks, discount=discount, terminated=terminated)
    if not np.isfinite(realised).all():
        raise CalibrationError(f"{task_name(env)} gave a reward that is not finite in the episode of seed {seed}")
    thinned = kept_ticks(seed, ticks)
    return _Kept(
        observation=np.stack([observations[tick] for tick in thinned]),
        action=np.stack([actions[tick] for tick in thinned]),
        realised=realised[thinned],
        steps_to_fall=len(rewards) - thinned.astype(np.float64) if terminated else np.full(len(thinned), math.inf),
        fell=bool(terminated and len(rewards) <= ordinary),
        length=ticks,
    )


def kept_ticks(seed: int, ticks: int) -> Indices:
    """Up to 50 of so many ticks, ascending, from a stream of random numbers that the task of that seed does not use."""
    return np.sort(np.random.default_rng((seed, 1)).choice(ticks, min(KEPT_TICKS, ticks), replace=False))


def realised_returns(rewards: Sequence[float], *, ticks: int, discount: float, terminated: bool) -> Array:
    """Discounted return from each of the first `ticks` steps on, (ticks,).

    A terminal state ends the rewards. Without one, those after the first `ticks` stand for all that would follow: H steps hold a share
    1 - discount^H of the discounted rewards of all time if these go on as they were, and are scaled up by it.

    Args:
        rewards: of all steps, those followed beyond the time limit included.
        ticks: steps before the time limit.
        discount: per step, in (0, 1).
        terminated: whether a terminal state ended them.
    """
    ahead = 0.0
    for reward in reversed(rewards[ticks:]):
        ahead = reward + discount * ahead
    if not terminated:
        ahead /= 1 - discount ** (len(rewards) - ticks)
    realised = np.empty(ticks)
    for tick in reversed(range(ticks)):
        ahead = rewards[tick] + discount * ahead
        realised[tick] = ahead
    return realised


def _together(episodes: list[_Kept]) -> Ticks:
    lengths = [len(episode.realised) for episode in episodes]
    return Ticks(
        episode=np.repeat(np.arange(len(episodes)), lengths),
        observation=np.concatenate([episode.observation for episode in episodes]),
        action=np.concatenate([episode.action for episode in episodes]),
        realised=np.concatenate([episode.realised for episode in episodes]),
        steps_to_fall=np.concatenate([episode.steps_to_fall for episode in episodes]),
        fell=np.array([episode.fell for episode in episodes]),
        length=np.array([episode.length for episode in episodes], np.float64),
    )
