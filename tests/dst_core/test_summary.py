"""The served summary against the same statistics written plainly in numpy."""

import numpy as np
import pytest
import torch

from dst_core.summary import Summarise

LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


@pytest.fixture
def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 50 * torch.randn(6, 32, generator=generator) - 20, torch.randn(6, 32, 3, generator=generator) + torch.tensor(
        [0.0, 0.5, 3.0]
    )


def summarise(returns: torch.Tensor, gradients: torch.Tensor):
    return Summarise(count=32, return_levels=LEVELS, cvar_level=0.1, norm_levels=(0.1, 0.5, 0.9))(returns, gradients)


def test_summary_equals_numpy(samples: tuple[torch.Tensor, torch.Tensor]) -> None:
    summary = summarise(*samples)
    z, g = (part.double().numpy() for part in samples)
    norm = np.linalg.norm(g, axis=-1)
    worst = np.sort(z, axis=1)[:, :4] @ np.array([1, 1, 1, 0.2]) / 3.2
    expected = {
        "return_mean": z.mean(1),
        "return_std": z.std(1),
        "return_quantiles": np.quantile(z, LEVELS, axis=1).T,
        "return_cvar": worst,
        "gradient_mean": g.mean(1),
        "gradient_std": g.std(1),
        "gradient_norm_quantiles": np.quantile(norm, (0.1, 0.5, 0.9), axis=1).T,
        "gradient_sign_agreement": np.maximum((g > 0).mean(1), 1 - (g > 0).mean(1)),
        "gradient_resultant_length": np.linalg.norm((g / norm[..., None]).mean(1), axis=-1),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(summary, name).numpy(), value, rtol=2e-5, atol=1e-5, err_msg=name)


def test_quantiles_never_cross_even_among_equal_and_huge_samples() -> None:
    generator = torch.Generator().manual_seed(1)
    returns = torch.randn(2000, 32, generator=generator) * 10.0 ** torch.randint(-6, 7, (2000, 1), generator=generator)
    returns[::3] = returns[::3, :1] + 1e-7 * returns[::3]
    quantiles = summarise(returns, torch.zeros(2000, 32, 1)).return_quantiles
    assert bool((quantiles.diff(dim=1) >= 0).all())


def test_gradients_of_one_direction_have_resultant_length_one_and_opposed_ones_none() -> None:
    along = torch.ones(1, 32, 2)
    opposed = along.clone()
    opposed[:, ::2] *= -1
    returns = torch.zeros(1, 32)
    assert float(summarise(returns, along).gradient_resultant_length) == pytest.approx(1.0)
    assert float(summarise(returns, opposed).gradient_resultant_length) == pytest.approx(0.0, abs=1e-6)
    assert summarise(returns, opposed).gradient_sign_agreement.tolist() == [[0.5, 0.5]]
