import pytest
import torch

from dst_core.baselines.quantile_regression import quantile_huber_loss


@pytest.mark.parametrize("threshold", [0.01, 0.3, 1.0])
def test_quantile_huber_loss_agrees_with_a_double_loop(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    target = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    fractions = torch.rand(2, 3, 5, generator=generator, dtype=torch.float64)
    loss = quantile_huber_loss(predicted, fractions, target, threshold=threshold)
    for e in range(2):
        for b in range(3):
            total = 0.0
            for n in range(5):
                for k in range(7):
                    u = (target[b, k] - predicted[e, b, n]).item()
                    huber = 0.5 * u**2 if abs(u) <= threshold else threshold * (abs(u) - 0.5 * threshold)
                    total += abs(fractions[e, b, n].item() - (u < 0)) * huber / threshold
            assert loss[e, b].item() == pytest.approx(total / 35, rel=1e-12)


def test_minimisers_of_the_quantile_loss_are_the_quantiles() -> None:
    """Of the exponential law, whose quantile at tau is -log(1 - tau), by gradient descent from elsewhere."""
    fractions = (torch.arange(9, dtype=torch.float64) + 0.5) / 9
    target = -torch.log1p(-(torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    predicted = torch.zeros(9, dtype=torch.float64, requires_grad=True)
    for _ in range(400):
        (gradient,) = torch.autograd.grad(9 * quantile_huber_loss(predicted, fractions, target), predicted)
        predicted.data -= gradient / (1 - fractions)  # one over the density at the quantile: Newton's step near it
    torch.testing.assert_close(predicted.detach(), -torch.log1p(-fractions), atol=5e-3, rtol=0)


def test_a_wide_huber_threshold_gives_expectiles_whose_spread_is_too_small() -> None:
    """Why the threshold is small: of a parabola alone the minimisers are expectiles, narrower than quantiles for the normal law."""
    fractions = (torch.arange(25, dtype=torch.float64) + 0.5) / 25
    target = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(1000, dtype=torch.float64) + 0.5) / 1000)
    spreads = {}
    for threshold in (0.01, 10.0):
        predicted = torch.zeros(25, dtype=torch.float64, requires_grad=True)
        for _ in range(300):
            (gradient,) = torch.autograd.grad(
                25 * quantile_huber_loss(predicted, fractions, target, threshold=threshold), predicted
            )
            predicted.data -= gradient * max(1.0, threshold)
        spreads[threshold] = predicted.detach().std(correction=0).item()
    assert spreads[0.01] == pytest.approx(1.0, abs=0.05)
    assert spreads[10.0] < 0.7
