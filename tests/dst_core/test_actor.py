"""What the actor climbs, and the limits of what it does."""

import pytest
import torch

from dst_core.actor import Actor, objective
from dst_core.networks import ActionScale, Standardiser


@pytest.fixture
def returns() -> torch.Tensor:
    return 30 * torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 7


def test_mean_objective_is_the_mean(returns: torch.Tensor) -> None:
    expected = torch.tensor([[sum(row) / 20 for row in member] for member in returns.tolist()], dtype=torch.float64)
    torch.testing.assert_close(objective(returns, risk="mean", risk_level=0.3), expected)


@pytest.mark.parametrize(("level", "worst"), [(0.05, 1), (0.25, 5), (0.5, 10), (1.0, 20)])
def test_cvar_objective_is_the_mean_of_the_worst_share(returns: torch.Tensor, level: float, worst: int) -> None:
    expected = [[sum(sorted(row)[:worst]) / worst for row in member] for member in returns.tolist()]
    found = objective(returns, risk="cvar", risk_level=level)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("samples", "level"), [(6, 0.25), (6, 0.4), (10, 0.25), (10, 0.99), (1, 1.0)])
def test_cvar_averages_the_share_that_was_asked_for_whatever_the_number_of_samples(samples: int, level: float) -> None:
    """The mean of the quantile function up to `level`: each sample is a step as wide as its share."""
    row = torch.randn(samples, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    steps = row.sort().values.repeat_interleave(1000)
    expected = steps[: round(level * samples * 1000)].mean()
    torch.testing.assert_close(objective(row, risk="cvar", risk_level=level), expected)


def test_cvar_climbs_the_worst_samples_alone(returns: torch.Tensor) -> None:
    returns.requires_grad_()
    objective(returns, risk="cvar", risk_level=0.25).sum().backward()
    assert returns.grad is not None
    worst = returns.detach() <= returns.detach().sort(-1).values[..., 4:5]
    torch.testing.assert_close(returns.grad, worst.double() / 5)


def test_mean_std_objective_subtracts_weighted_standard_deviations(returns: torch.Tensor) -> None:
    mean = returns.mean(-1)
    squares = [[sum((x - sum(row) / 20) ** 2 for x in row) / 19 for row in member] for member in returns.tolist()]
    expected = mean - 0.7 * torch.tensor(squares, dtype=torch.float64).sqrt()
    torch.testing.assert_close(objective(returns, risk="mean-std", risk_level=0.7), expected)


def test_known_objectives_of_one_set_of_samples() -> None:
    samples = torch.tensor([4.0, 0.0, 2.0, 6.0])
    assert float(objective(samples, risk="mean", risk_level=0.5)) == pytest.approx(3)
    assert float(objective(samples, risk="cvar", risk_level=0.5)) == pytest.approx(1)
    assert float(objective(samples, risk="mean-std", risk_level=3.0)) == pytest.approx(3 - 3 * (20 / 3) ** 0.5)


def test_actions_stay_within_their_limits_however_far_the_observation() -> None:
    torch.manual_seed(0)
    low, high = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 6.0])
    actor = Actor(observation=Standardiser(3), action=ActionScale(low, high), hidden=8)
    actions = actor(1e6 * torch.randn(500, 3))
    assert bool((actions >= low).all())
    assert bool((actions <= high).all())
    assert bool((actions.amax(0) > high - 1e-3).any())
    assert bool((actions.amin(0) < low + 1e-3).any())


def test_observations_are_standardised_before_the_layers() -> None:
    torch.manual_seed(0)
    scaled, plain = Standardiser(3), Standardiser(3)
    rows = torch.randn(200, 3) * torch.tensor([100.0, 1.0, 0.01]) + 50
    scaled.update(rows)
    action = ActionScale(-torch.ones(2), torch.ones(2))
    actor = Actor(observation=scaled, action=action, hidden=8)
    other = Actor(observation=plain, action=action, hidden=8)
    other.layers.load_state_dict(actor.layers.state_dict())
    torch.testing.assert_close(
        actor(rows), other((rows - rows.mean(0)) / rows.std(0, correction=0)), rtol=1e-4, atol=1e-5
    )
