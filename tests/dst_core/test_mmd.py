import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dst_core.mmd import (
    KERNELS,
    Estimator,
    Kernel,
    cross_fitted_sliced_mmd2,
    max_sliced_mmd2,
    mmd2,
    sliced_mmd2,
    steepest_direction,
)


def kernel(x: torch.Tensor, y: torch.Tensor, h: float, name: Kernel) -> float:
    squared = float(((x - y) ** 2).sum())
    return -math.sqrt(1 + h**2 * squared) / h if name == "multiquadric" else math.exp(-(h**2) * squared / 2)


def mmd2_by_double_loop(  # noqa: PLR0917 (two sets and the four choices of the distance)
    x: torch.Tensor, y: torch.Tensor, h: float, name: Kernel, estimator: Estimator, together: torch.Tensor | None = None
) -> float:
    n, m = len(x), len(y)
    skip = estimator == "unbiased"
    xx = [kernel(x[i], x[j], h, name) for i in range(n) for j in range(n) if not (skip and i == j)]
    yy = [kernel(y[i], y[j], h, name) for i in range(m) for j in range(m) if not (skip and i == j)]
    xy = [
        kernel(x[i], y[j], h, name) for i in range(n) for j in range(m) if together is None or not bool(together[i, j])
    ]
    return sum(xx) / len(xx) + sum(yy) / len(yy) - 2 * sum(xy) / len(xy)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 6),
    m=st.integers(2, 6),
    d=st.integers(1, 4),
    h=st.floats(0.1, 100),
    name=st.sampled_from(sorted(KERNELS)),
    estimator=st.sampled_from(["unbiased", "biased"]),
    seed=st.integers(0, 2**31),
)
def test_mmd2_equals_the_double_loop(  # noqa: PLR0917 (drawn by name)
    n: int, m: int, d: int, h: float, name: Kernel, estimator: Estimator, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(3, m, d, generator=generator, dtype=torch.float64)
    expected = [mmd2_by_double_loop(a, b, h, name, estimator) for a, b in zip(x, y, strict=True)]
    found = mmd2(x, y, bandwidth=h, kernel=name, estimator=estimator)
    assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
def test_samples_of_the_same_noise_are_not_compared(estimator: Estimator) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 5, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(3, 7, 2, generator=generator, dtype=torch.float64)
    together = torch.rand(3, 5, 7, generator=generator) < 0.3
    found = mmd2(x, y, bandwidth=2.0, estimator=estimator, together=together)
    for member in range(2):
        for row in range(3):
            given_apart = mmd2_by_double_loop(x[member, row], y[row], 2.0, "multiquadric", estimator, together[row])
            assert float(found[member, row]) == pytest.approx(given_apart, rel=1e-9)


def driven_alike(
    rows: int, samples: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples of equal laws N(0, I) in pairs that share 0.81 of their variance, each with its pair as `together` tells."""
    x, fresh = torch.randn(2, rows, samples, 2, generator=generator)
    return x, 0.9 * x + math.sqrt(1 - 0.81) * fresh, torch.eye(samples, dtype=torch.bool)


@pytest.mark.parametrize("distance", [mmd2, cross_fitted_sliced_mmd2])
def test_distance_of_equal_laws_driven_by_the_same_noise_is_zero_on_average_and_varies_less(distance) -> None:
    x, y, together = driven_alike(6_000, 10, torch.Generator().manual_seed(3))
    values = distance(x, y, bandwidth=100.0, together=together)
    error = float(values.std()) / math.sqrt(len(values))
    assert abs(float(values.mean())) < 4 * error
    assert abs(float(distance(x, y, bandwidth=100.0).mean())) > 20 * error, "compared with its own pair it is biased"
    apart = distance(x, y.roll(1, 0), bandwidth=100.0)
    assert float(values.std()) < 0.7 * float(apart.std())


@pytest.mark.parametrize("distance", [mmd2, cross_fitted_sliced_mmd2])
def test_slope_by_the_spread_vanishes_at_equal_laws_driven_by_the_same_noise(distance) -> None:
    x, y, together = driven_alike(20_000, 10, torch.Generator().manual_seed(4))
    spread = torch.ones(len(x), 1, 1, requires_grad=True)
    (slope,) = torch.autograd.grad(distance(spread * x, y, bandwidth=100.0, together=together).sum(), spread)
    assert abs(float(slope.mean())) < 4 * float(slope.std()) / math.sqrt(len(x))


def test_cross_fitted_distance_of_one_column_is_the_plain_one() -> None:
    x, y, together = driven_alike(20, 12, torch.Generator().manual_seed(6))
    along = {"bandwidth": 3.0, "together": together}
    crossed = cross_fitted_sliced_mmd2(x[..., :1], y[..., :1], **along)
    assert torch.equal(crossed, mmd2(x[..., :1], y[..., :1], **along))


@pytest.mark.parametrize(("samples", "cuts"), [(5, [0, 2, 5]), (19, [0, 9, 19]), (31, [0, 10, 20, 31])])
def test_directions_come_from_parts_that_share_no_noise_with_what_is_measured(samples: int, cuts: list[int]) -> None:
    generator = torch.Generator().manual_seed(5)
    x, y = torch.randn(1, samples, 2, generator=generator), torch.randn(1, 2 * samples, 2, generator=generator)
    draw = torch.arange(2 * samples) // 2
    together = draw == torch.arange(samples)[:, None]
    by_hand = []
    for low, high in pairwise(cuts):
        part = (torch.arange(samples) >= low) & (torch.arange(samples) < high)
        target = part[draw]
        along = steepest_direction(x[:, part], y[:, target], bandwidth=3.0, together=together[part][:, target])
        rest = (x[:, ~part], y[:, ~target])
        by_hand.append(float(sliced_mmd2(*rest, along, bandwidth=3.0, together=together[~part][:, ~target])))
    found = cross_fitted_sliced_mmd2(x, y, bandwidth=3.0, together=together)
    assert float(found) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-6)


def test_mmd2_of_two_points_a_side_has_its_known_value() -> None:
    x, y = torch.tensor([[0.0], [0.0]]), torch.tensor([[3.0], [3.0]])
    known = 2 * (math.sqrt(1 + 9) - 1)
    assert float(mmd2(x, y, bandwidth=1.0)) == pytest.approx(known)


def test_mmd2_is_unbiased_zero_on_average_for_equal_laws() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20_000, 5, 2, generator=generator), torch.randn(20_000, 5, 2, generator=generator)
    values = mmd2(x, y, bandwidth=100.0)
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(len(values))


def test_biased_estimate_of_equal_laws_is_positive_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(5_000, 5, 2, generator=generator), torch.randn(5_000, 5, 2, generator=generator)
    values = mmd2(x, y, bandwidth=100.0, estimator="biased")
    assert float(values.mean()) > 50 * float(values.std()) / math.sqrt(len(values))


def test_cross_fitted_distance_of_equal_laws_is_zero_on_average_where_the_maximum_is_positive() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(20_000, 10, 2, generator=generator), torch.randn(20_000, 10, 2, generator=generator)
    crossed, largest = cross_fitted_sliced_mmd2(x, y, bandwidth=100.0), max_sliced_mmd2(x, y, bandwidth=100.0)
    error = float(crossed.std()) / math.sqrt(len(crossed))
    assert abs(float(crossed.mean())) < 4 * error
    assert float(largest.mean()) > 20 * error


def test_slope_of_the_cross_fitted_distance_by_the_spread_vanishes_at_equal_laws() -> None:
    """The maximum over the samples themselves falls as the predicted law narrows, and so would teach too narrow a law."""
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(20_000, 10, 2, generator=generator), torch.randn(20_000, 10, 2, generator=generator)
    slopes = {}
    for distance in (cross_fitted_sliced_mmd2, max_sliced_mmd2):
        spread = torch.ones(len(x), 1, 1, requires_grad=True)
        (slope,) = torch.autograd.grad(distance(spread * x, y, bandwidth=100.0).sum(), spread)
        slopes[distance] = float(slope.mean()), float(slope.std()) / math.sqrt(len(x))
    (crossed, crossed_error), (largest, error) = slopes[cross_fitted_sliced_mmd2], slopes[max_sliced_mmd2]
    assert abs(crossed) < 4 * crossed_error
    assert largest > 10 * error


def test_cross_fitted_distance_sees_laws_that_differ_in_one_direction_alone() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(200, 64, 3, generator=generator)
    y = torch.randn(200, 64, 3, generator=generator) + torch.tensor([0.0, 2.0, 0.0])
    along = mmd2(x[..., 1:2], y[..., 1:2], bandwidth=100.0).mean()
    assert float(cross_fitted_sliced_mmd2(x, y, bandwidth=100.0).mean()) > 0.9 * float(along)


def test_large_bandwidth_gives_the_energy_distance() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(7, 3, generator=generator), 1 + torch.randn(5, 3, generator=generator)
    between = torch.cdist(x, y).mean()
    within = torch.cdist(x, x).sum() / (7 * 6) + torch.cdist(y, y).sum() / (5 * 4)
    assert float(mmd2(x, y, bandwidth=1e4)) == pytest.approx(float(2 * between - within), abs=1e-3)


def test_gradient_of_the_distance_equals_finite_differences() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda samples: mmd2(samples, y, bandwidth=3.0), (x,))


def test_on_the_line_the_sliced_distance_and_its_gradient_are_the_plain_ones() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 5, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 6, 1, generator=generator, dtype=torch.float64)
    plain, sliced = mmd2(x, y, bandwidth=3.0), max_sliced_mmd2(x, y, bandwidth=3.0)
    torch.testing.assert_close(sliced, plain)
    torch.testing.assert_close(torch.autograd.grad(sliced.sum(), x), torch.autograd.grad(plain.sum(), x))


def pairs_of_laws(differ_in: str, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of 256 pairs of laws in `size` dimensions, 10 and 20 a side."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(256, 10, size, generator=generator), torch.randn(256, 20, size, generator=generator)
    match differ_in:
        case "mean and scale":
            y = y * torch.linspace(0.5, 2, size) + 0.5
        case "scale along no axis":
            y = y * torch.linspace(0.3, 3, size) @ torch.linalg.qr(torch.randn(size, size, generator=generator)).Q
        case "correlation alone":
            for rows, sign in ((x, 1), (y, -1)):
                rows[..., 1] = sign * rows[..., 0] + 0.1 * rows[..., 1]
    return x, y


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize("differ_in", ["nothing", "mean and scale", "scale along no axis", "correlation alone"])
def test_sliced_maximum_reaches_the_best_of_many_random_directions(
    differ_in: str, size: int, estimator: Estimator
) -> None:
    x, y = pairs_of_laws(differ_in, size)
    directions = torch.nn.functional.normalize(
        torch.randn(256, size, generator=torch.Generator().manual_seed(4)), dim=-1
    )
    given = {"bandwidth": 100.0, "estimator": estimator}
    best = torch.stack([mmd2(x @ v[:, None], y @ v[:, None], **given) for v in directions]).amax(0)
    reached = max_sliced_mmd2(x, y, **given)
    assert float(reached.mean()) >= 0.98 * float(best.mean())
    missed = reached < best - 0.02 * best.abs()
    assert float(missed.float().mean()) <= (0.12 if differ_in == "nothing" else 0.07)


def test_no_gradient_reaches_a_detached_target() -> None:
    generator = torch.Generator().manual_seed(4)
    x, y = (torch.randn(1, 4, 2, generator=generator).requires_grad_() for _ in range(2))
    for distance in (mmd2, max_sliced_mmd2, cross_fitted_sliced_mmd2):
        x.grad = y.grad = None
        distance(x, y.detach(), bandwidth=1.0).sum().backward()
        assert bool(x.grad.any())
        assert y.grad is None
        distance(x, y, bandwidth=1.0).sum().backward()
        assert bool(y.grad.any())


@pytest.mark.parametrize(
    ("x", "y", "bandwidth", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 1), 1.0, "number of columns"),
        (torch.zeros(1, 2), torch.zeros(3, 2), 1.0, "at least 2 samples"),
        (torch.zeros(3, 2), torch.zeros(1, 2), 1.0, "at least 2 samples"),
        (torch.zeros(3, 2), torch.zeros(3, 2), 0.0, "bandwidth must be positive"),
    ],
)
def test_samples_that_do_not_fit_are_refused(x: torch.Tensor, y: torch.Tensor, bandwidth: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mmd2(x, y, bandwidth=bandwidth)
