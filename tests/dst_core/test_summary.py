"""The served summary against the same statistics written plainly in numpy, and the correction against numpy's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dst_core.calibration.conformal import corrected
from dst_core.graphs import Correction
from dst_core.summary import NORM_LEVELS, RETURN_LEVELS, Summarise, Summary

THRESHOLD = -30.0


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 50 * torch.randn(6, 32, generator=generator) - 20, torch.randn(6, 3, 32, generator=generator) + torch.tensor(
        [[0.0], [0.5], [3.0]]
    )


def summarise(returns: torch.Tensor, gradients: torch.Tensor, *, critics: int = 2) -> Summary:
    module = Summarise(count=returns.shape[1], critics=critics, return_threshold=THRESHOLD)
    passed_on = {"data_distance": torch.zeros(len(returns)), "observation_gradient": torch.zeros(len(returns), 4)}
    return module(returns, gradients, **passed_on)


def plain(z: np.ndarray, g: np.ndarray, *, critics: int, threshold: float) -> dict[str, np.ndarray]:
    """Of returns (B, N) and gradients (B, N, A)."""
    norm = np.linalg.norm(g, axis=-1)
    share = (g > 0).mean(1)
    count = z.shape[1]
    whole, part = divmod(0.1 * count, 1)
    weights = np.array([*[1.0] * int(whole), part])
    return {
        "return_mean": z.mean(1),
        "return_std": z.std(1),
        "return_quantiles_raw": np.quantile(z, RETURN_LEVELS, axis=1).T,
        "return_cvar": np.sort(z, axis=1)[:, : len(weights)] @ weights / weights.sum(),
        "return_below_threshold": (z < threshold).mean(1),
        "gradient_mean": g.mean(1),
        "gradient_std": g.std(1),
        "gradient_norm_quantiles": np.quantile(norm, NORM_LEVELS, axis=1).T,
        "gradient_sign_agreement": np.maximum(share, 1 - share),
        "gradient_resultant_length": np.linalg.norm((g / norm[..., None]).mean(1), axis=-1),
        "critic_disagreement": z.reshape(len(z), critics, -1).mean(2).std(1),
    }


@pytest.mark.parametrize("critics", [1, 2, 4])
def test_summary_equals_numpy(samples: tuple[torch.Tensor, torch.Tensor], critics: int) -> None:
    summary = summarise(*samples, critics=critics)
    z, g = samples[0].double().numpy(), samples[1].double().mT.numpy()
    for name, value in plain(z, g, critics=critics, threshold=THRESHOLD).items():
        np.testing.assert_allclose(getattr(summary, name).numpy(), value, rtol=2e-5, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(summary.gradient_samples.numpy(), g.astype(np.float32))


def test_spread_of_returns_far_from_zero_is_not_lost_to_rounding() -> None:
    returns = 1e5 + torch.randn(4, 32, generator=torch.Generator().manual_seed(2))
    summary = summarise(returns, torch.ones(4, 1, 32))
    z = returns.double().numpy()
    np.testing.assert_allclose(summary.return_std.numpy(), z.std(1), rtol=1e-3)
    disagreement = z.reshape(4, 2, 16).mean(2).std(1)
    np.testing.assert_allclose(summary.critic_disagreement.numpy(), disagreement, rtol=1e-3, atol=1e-3)


def test_one_critic_disagrees_with_nobody() -> None:
    returns = 1e5 + torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    assert not summarise(returns, torch.ones(64, 1, 32), critics=1).critic_disagreement.any()


@pytest.mark.parametrize("count", [4, 10, 32, 128])
def test_quantiles_never_cross_even_among_equal_and_huge_samples(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    returns = torch.randn(2000, count, generator=generator)
    returns *= 10.0 ** torch.randint(-6, 7, (2000, 1), generator=generator)
    returns[::3] = returns[::3, :1] + 1e-7 * returns[::3]
    quantiles = summarise(returns, torch.zeros(2000, 1, count)).return_quantiles_raw
    assert bool((quantiles.diff(dim=1) >= 0).all())


def test_gradients_of_one_direction_have_resultant_length_one_and_opposed_or_vanishing_ones_none() -> None:
    along = torch.ones(1, 2, 32)
    opposed = along.clone()
    opposed[..., ::2] *= -1
    returns = torch.zeros(1, 32)
    assert float(summarise(returns, along).gradient_resultant_length) == pytest.approx(1.0)
    assert float(summarise(returns, opposed).gradient_resultant_length) == pytest.approx(0.0, abs=1e-6)
    assert summarise(returns, opposed).gradient_sign_agreement.tolist() == [[0.5, 0.5]]
    assert float(summarise(returns, 0 * along).gradient_resultant_length) == 0.0


@settings(max_examples=200, deadline=None)
@given(
    positions=st.lists(st.floats(-1e3, 1e3, width=32), min_size=9, max_size=9),
    std=st.sampled_from([0.0, 1e-7, 0.3, 1e4]),
    floor=st.sampled_from([1e-6, 0.03, 1e3]),
    seed=st.integers(0, 2**31),
)
def test_corrected_quantiles_are_numpys_and_never_cross_whatever_the_positions(
    positions: list[float], std: float, floor: float, seed: int
) -> None:
    raw = torch.randn(5, 9, generator=torch.Generator().manual_seed(seed)).sort(1).values
    spread = torch.full((5,), std)
    found = Correction(tuple(positions), floor=floor)(raw, spread).numpy()
    assert (np.diff(found, axis=1) >= 0).all()
    places = np.asarray(positions)
    truth = corrected(raw.double().numpy(), spread.double().numpy(), places, RETURN_LEVELS, floor=floor)
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-5 * max(1.0, std, floor))


def test_positions_at_the_levels_correct_nothing() -> None:
    raw = torch.arange(9.0).unsqueeze(0)
    torch.testing.assert_close(Correction(RETURN_LEVELS, floor=1e-3)(raw, torch.tensor([2.0])), raw)
