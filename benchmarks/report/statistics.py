"""Estimates over seeds with 95 % intervals from the stratified bootstrap of rliable (Agarwal et al., NeurIPS 2021).

Every cell's runs are drawn anew, with replacement and on their own; all intervals of a page rest on the same draws.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from rliable.library import StratifiedIndependentBootstrap

from benchmarks.report.runs import Floats

DRAWS = 2000
SEED = 20260
PERCENTILES = (2.5, 97.5)

Indices = NDArray[np.intp]
Key = TypeVar("Key", bound=Hashable)
Statistic = Callable[..., Floats]
"""Of arrays (..., n), each the scores of a cell, to (...)."""


class Estimate(NamedTuple):
    """A number and its interval; without one where a cell has a single run."""

    value: float
    low: float | None
    high: float | None


class Bounds(NamedTuple):
    """A number known to lie between two, where runs that never got there leave it open, and its interval."""

    least: float
    most: float
    low: float | None
    high: float | None


def draw(counts: Mapping[Key, int]) -> dict[Key, Indices]:
    """Bootstrap draws of every cell: which of its runs, (DRAWS, n).

    Args:
        counts: runs of each cell, n.
    """
    sizes = sorted(set(counts.values()))
    groups = [[key for key, count in counts.items() if count == size] for size in sizes]
    tables = [np.tile(np.arange(size)[:, None], (1, len(group))) for size, group in zip(sizes, groups, strict=True)]
    with _seeded(SEED):
        bootstrap = StratifiedIndependentBootstrap(*tables)
        flat = bootstrap.apply(lambda *drawn: np.concatenate([table.ravel() for table in drawn]), reps=DRAWS)
    parts = np.split(flat.astype(np.intp), np.cumsum([table.size for table in tables])[:-1], axis=1)
    return {
        key: np.ascontiguousarray(part.reshape(DRAWS, size, len(group))[:, :, column])
        for part, size, group in zip(parts, sizes, groups, strict=True)
        for column, key in enumerate(group)
    }


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's global generator for a while: rliable draws from it whatever `random_state` it is given."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def estimate(statistic: Statistic, scores: Sequence[Floats], draws: Sequence[Indices]) -> Estimate:
    """A statistic of cells, with its percentile interval.

    Args:
        statistic: of as many arrays as there are cells.
        scores: of each cell's runs, (n,).
        draws: of each cell, (DRAWS, n).
    """
    value = float(statistic(*scores))
    if min(len(cell) for cell in scores) < 2:
        return Estimate(value, None, None)
    replicates = statistic(*(cell[drawn] for cell, drawn in zip(scores, draws, strict=True)))
    low, high = np.percentile(replicates, PERCENTILES)
    return Estimate(value, float(low), float(high))


def estimate_bounds(
    statistic: Callable[..., tuple[Floats, Floats]], scores: Sequence[Floats], draws: Sequence[Indices]
) -> Bounds:
    """As `estimate`, of a statistic that gives the least and the most it may be.

    The interval runs from the lower percentile of the least to the upper percentile of the most; both are taken outwards to the next
    draw, since infinite ones cannot be interpolated.
    """
    least, most = (float(bound) for bound in statistic(*scores))
    if min(len(cell) for cell in scores) < 2:
        return Bounds(least, most, None, None)
    lows, highs = statistic(*(cell[drawn] for cell, drawn in zip(scores, draws, strict=True)))
    low = np.percentile(lows, PERCENTILES[0], method="lower")
    high = np.percentile(highs, PERCENTILES[1], method="higher")
    return Bounds(least, most, float(low), float(high))


def iqm(*cells: Floats) -> Floats:
    """Interquartile mean of all scores together: the mean without the lowest and the highest quarter (rounded down)."""
    scores = np.sort(np.concatenate(cells, axis=-1), axis=-1)
    cut = scores.shape[-1] // 4
    return np.asarray(scores[..., cut : scores.shape[-1] - cut].mean(-1))


def spread(cell: Floats) -> Floats:
    """Standard deviation over seeds, of n - 1 degrees of freedom; NaN of a single one."""
    if cell.shape[-1] < 2:
        return np.full(cell.shape[:-1], np.nan)
    return np.asarray(np.std(cell, axis=-1, ddof=1))


def improvement(*cells: Floats) -> Floats:
    """Probability that a run of x scores above one of y, ties counted half, averaged over settings.

    Args:
        cells: of x in each setting, then of y in each.
    """
    half = len(cells) // 2
    chances = [
        (x[..., :, None] > y[..., None, :]).mean((-2, -1)) + (x[..., :, None] == y[..., None, :]).mean((-2, -1)) / 2
        for x, y in zip(cells[:half], cells[half:], strict=True)
    ]
    return np.asarray(np.mean(chances, axis=0))


def median_ratio(x: Floats, y: Floats, *, limit: float) -> tuple[Floats, Floats]:
    """Least and most that the ratio of the medians of x and y may be, where infinite numbers are known to exceed `limit` only."""
    least = _ratio(np.median(np.minimum(x, limit), axis=-1), np.median(y, axis=-1), undetermined=0.0)
    most = _ratio(np.median(x, axis=-1), np.median(np.minimum(y, limit), axis=-1), undetermined=np.inf)
    return least, most


def spread_ratio(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Least and most that the ratio of the spreads of x and y may be; they differ where both spreads are zero."""
    return _ratio(spread(x), spread(y), undetermined=0.0), _ratio(spread(x), spread(y), undetermined=np.inf)


def _ratio(x: Floats, y: Floats, *, undetermined: float) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.asarray(np.true_divide(x, y))
    return np.where(np.isnan(ratio), undetermined, ratio)
