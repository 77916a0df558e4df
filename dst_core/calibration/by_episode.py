"""Ticks of one episode resemble each other, episodes do not: each episode counts once, and intervals are over episodes.

Throughout, `episode` (R,) numbers the episode of every tick from 0 to K - 1, each at least once.
"""

import numpy as np
from numpy.typing import NDArray

from dst_core.calibration.result import Estimate

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

RESAMPLES = 2000
INTERVAL = (0.025, 0.975)


def episode_weights(episode: Indices) -> Array:
    """Weights (R,) with sum 1: as much for one episode as for another, shared evenly by its ticks."""
    ticks = np.bincount(episode)
    weights: Array = 1.0 / (len(ticks) * ticks[episode])
    return weights


def renumbered(episode: Indices) -> Indices:
    """Numbers from 0 on, in the same order, for ticks of which some were left out, and so perhaps whole episodes."""
    numbers: Indices = np.unique(episode, return_inverse=True)[1]
    return numbers


def draw_ticks(episode: Indices, count: int) -> Indices:
    """Rows of ticks drawn at random, with replacement, each episode as likely as another; always the same, (count,)."""
    return np.random.default_rng(0).choice(len(episode), count, p=episode_weights(episode))


def mean_and_std(values: Array, episode: Indices) -> tuple[float, float]:
    """Of (R,) under `episode_weights`."""
    weights = episode_weights(episode)
    mean = float(weights @ values)
    return mean, float(np.sqrt(weights @ (values - mean) ** 2))


def episode_means(values: NDArray[np.generic], episode: Indices) -> Array:
    """Means over the ticks of every episode, (K, ...) for (R, ...)."""
    sums = np.zeros((episode.max() + 1, *values.shape[1:]))
    np.add.at(sums, episode, values)
    means: Array = (sums.T / np.bincount(episode)).T
    return means


def resamples(episodes: int) -> Indices:
    """How often each of K episodes is in each bootstrap sample of K, (2000, K); always the same for one K."""
    drawn = np.random.default_rng(0).integers(episodes, size=(RESAMPLES, episodes))
    own_range = drawn + episodes * np.arange(RESAMPLES)[:, None]
    return np.bincount(own_range.ravel(), minlength=own_range.size).reshape(own_range.shape)


def estimates(values: NDArray[np.generic], episode: Indices) -> tuple[Estimate, ...]:
    """Mean over episodes of each column of (R, L), with its 95 % percentile bootstrap interval (Efron, 1979)."""
    means = episode_means(values, episode)
    drawn = resamples(len(means)) @ means / len(means)
    low, high = np.quantile(drawn, INTERVAL, axis=0)
    columns = zip(means.mean(0), low, high, strict=True)
    return tuple(Estimate(value=float(mean), low=float(below), high=float(above)) for mean, below, above in columns)


def estimate(values: NDArray[np.generic], episode: Indices) -> Estimate:
    """`estimates` of one column, (R,)."""
    return estimates(values[:, None], episode)[0]
