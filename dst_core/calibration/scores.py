"""How well predicted laws hold on fresh episodes, each of which counts once."""

from collections.abc import Sequence

import numpy as np
import scoringrules

from dst_core.calibration.by_episode import Array, Indices, episode_weights, estimate, estimates
from dst_core.calibration.conformal import Numbers
from dst_core.calibration.result import Energy, Estimate, Scores
from dst_core.errors import CalibrationError

PIT_BINS = 20
SAME_LEVEL = 1e-9


def central_columns(levels: Sequence[float], quantile_levels: Sequence[float]) -> list[tuple[int, int]]:
    """Columns of the lower and of the upper quantile of every central interval.

    Raises:
        CalibrationError: if a quantile of one is not served.
    """
    served = np.asarray(quantile_levels)
    columns = []
    for level in levels:
        wanted = np.array([(1 - level) / 2, (1 + level) / 2])
        near = np.abs(served - wanted[:, None]).argmin(1)
        if np.abs(served[near] - wanted).max() > SAME_LEVEL or not 0 < level < 1:
            possible = sorted({round(1 - 2 * low, 9) for low in served if low < 0.5})
            raise CalibrationError(
                f"--levels must be central intervals between served quantiles, "
                f"{', '.join(f'{share:g}' for share in possible)}, got {level:g}"
            )
        columns.append((int(near[0]), int(near[1])))
    return columns


def score(
    realised: Numbers,
    quantiles: Numbers,
    mean: Numbers | None,
    episode: Indices,
    *,
    quantile_levels: Sequence[float],
    levels: Sequence[float],
) -> Scores:
    """Coverage and width of central intervals, CRPS from quantiles, and bias.

    Args:
        realised: (R,) discounted returns.
        quantiles: (R, Q) predicted.
        mean: (R,) predicted; None where there is none, and the bias is then against the quantile nearest the median.
        episode: (R,) see `by_episode`.
        quantile_levels: (Q,)
        levels: (L,) of the central intervals.

    Raises:
        CalibrationError: if a quantile of an interval is missing.
    """
    lower, upper = np.array(central_columns(levels, quantile_levels)).T
    low, high = quantiles[:, lower], quantiles[:, upper]
    given = realised[:, None]
    median = quantiles[:, np.abs(np.asarray(quantile_levels) - 0.5).argmin()]
    width: Array = episode_weights(episode) @ (high - low)
    return Scores(
        coverage=estimates((low <= given) & (given <= high), episode),
        width=tuple(width.tolist()),
        crps=estimate(quantile_crps(realised, quantiles, quantile_levels), episode),
        bias=estimate(realised - (median if mean is None else mean), episode),
        centre="median" if mean is None else "mean",
    )


def quantile_crps(realised: Numbers, quantiles: Numbers, levels: Sequence[float]) -> Array:
    """CRPS from quantiles: twice the pinball loss integrated over the level (Gneiting and Ranjan, JBES 2011), (R,).

    Each loss stands for the levels nearest to its own, the outermost ones as far as 0 and 1. With the served levels that gives 97 % of the
    CRPS of a normal law.

    Args:
        realised: (R,)
        quantiles: (R, Q)
        levels: (Q,) ascending, in (0, 1).
    """
    at = np.asarray(levels)
    above = realised[:, None] - quantiles
    pinball = np.maximum(at * above, (at - 1) * above)
    stands_for = np.diff([0.0, *(at[1:] + at[:-1]) / 2, 1.0])
    crps: Array = 2 * pinball @ stands_for
    return crps


def ensemble_crps(realised: Numbers, samples: Numbers, episode: Indices) -> Estimate:
    """CRPS of return samples (R, N) as an ensemble: E|X - G| - E|X - X'| / 2 (Gneiting and Raftery, JASA 2007)."""
    crps = scoringrules.crps_ensemble(realised, samples, estimator="qd", backend="numpy")
    return estimate(crps, episode)


def pit_histogram(realised: Numbers, samples: Numbers, episode: Indices) -> tuple[float, ...]:
    """Shares of the probability integral transform in 20 equal bins, flat for a calibrated law.

    Randomised, u = (#{X < G} + v (#{X = G} + 1)) / (N + 1) with v uniform: exactly uniform if G is exchangeable with the samples (R, N).
    """
    given = realised[:, None]
    below, equal = (samples < given).sum(1), (samples == given).sum(1)
    place = np.random.default_rng(0).random(len(realised))
    transform = (below + place * (equal + 1)) / (samples.shape[1] + 1)
    shares = np.bincount((transform * PIT_BINS).astype(np.int64), weights=episode_weights(episode), minlength=PIT_BINS)
    return tuple(shares.tolist())


def energy_score(true: Numbers, predicted: Numbers, as_good: Numbers) -> Energy:
    """Energy score of joint samples (Gneiting and Raftery, JASA 2007), averaged over rows.

    Args:
        true: (R, D) one true draw per row; each column is measured in its standard deviation.
        predicted: (R, N, D) samples of the law.
        as_good: (R, N, D) true samples, the law that cannot be bettered.
    """
    spread = true.std(0)
    scale = np.where(spread > 0, spread, 1.0)
    law, truth = (
        float(scoringrules.es_ensemble(true / scale, samples / scale, backend="numpy").mean())
        for samples in (predicted, as_good)
    )
    return Energy(law=law, truth=truth)
