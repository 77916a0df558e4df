"""What holds for every learned world model."""

import math

import pytest
import torch

from dst_core.world_model import Transition
from tests.dst_core.world_models.fitting import (
    DYNAMICS_STD,
    MODELS,
    REWARD_STD,
    bimodal,
    build,
    fit,
    fitted_to_linear_quadratic,
    linear_quadratic,
)

every_model = pytest.mark.parametrize("name", MODELS)


@every_model
def test_log_likelihood_approaches_that_of_the_true_law_and_stays_below(name: str) -> None:
    held_out = linear_quadratic(5000, 1)
    s, a = held_out.observation[:, 0], held_out.action[:, 0]
    truth = torch.distributions.Normal(0.9 * s + 0.5 * a, DYNAMICS_STD).log_prob(held_out.next_observation[:, 0])
    truth += torch.distributions.Normal(-(s**2) - 0.1 * a**2, REWARD_STD).log_prob(held_out.reward)
    model = fitted_to_linear_quadratic(name)
    missing = truth - model.log_likelihood(held_out, torch.Generator().manual_seed(0))
    standard_error = float(missing.std()) / math.sqrt(len(missing))
    assert -3 * standard_error < float(missing.mean()) < 0.06


@every_model
def test_draws_scatter_about_the_mean_of_their_own_row_as_the_truth_does(name: str) -> None:
    data = linear_quadratic(4000, 2)
    s, a = data.observation, data.action
    with torch.no_grad():
        draw = fitted_to_linear_quadratic(name).sample(s, a, torch.Generator().manual_seed(3))
    by_dynamics = (draw.next_observation - 0.9 * s - 0.5 * a)[:, 0]
    by_reward = draw.reward + (s**2 + 0.1 * a**2)[:, 0]
    for noise, std in ((by_dynamics, DYNAMICS_STD), (by_reward, REWARD_STD)):
        assert float(noise.std()) == pytest.approx(std, rel=0.15)
        assert abs(float(noise.mean())) < 0.15 * std
    assert abs(float(torch.corrcoef(torch.stack([by_dynamics, by_reward]))[0, 1])) < 0.1


@every_model
def test_jacobians_are_those_of_the_true_dynamics(name: str) -> None:
    data = linear_quadratic(2000, 2)
    s, a = data.observation.requires_grad_(), data.action.requires_grad_()
    draw = fitted_to_linear_quadratic(name).sample(s, a, torch.Generator().manual_seed(3))
    by_state, by_action = torch.autograd.grad(draw.next_observation.sum(), (s, a), retain_graph=True)
    (slope,) = torch.autograd.grad(draw.reward.sum(), s)
    assert float(by_action.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(by_state.mean()) == pytest.approx(0.9, abs=0.03)
    assert float((by_action - 0.5).square().mean().sqrt()) < 0.07
    inner = s.abs() < 1.5
    error = (slope + 2 * s).detach()[inner]  # dr/ds = -2 s
    assert float(error.square().mean().sqrt()) < 0.4


@every_model
def test_density_integrates_to_one_in_the_users_units_and_has_the_moments_of_the_draws(name: str) -> None:
    data = bimodal(500, 0)
    model = build(name, data)
    s, a, side = 0.3, -0.2, 90
    given = model.given(torch.tensor([[s]]), torch.tensor([[a]]))
    with torch.no_grad():
        draws = model.outcome.restore(model.draw(given.expand(20_000, -1), torch.Generator().manual_seed(0)))
    low, high = draws.mean(0) - 7 * draws.std(0), draws.mean(0) + 7 * draws.std(0)
    axes = [torch.linspace(float(l), float(h), side) for l, h in zip(low, high, strict=True)]  # noqa: E741
    grid = torch.cartesian_prod(*axes)
    count = len(grid)
    rows = Transition(
        torch.full((count, 1), s), torch.full((count, 1), a), grid[:, 1], s + grid[:, :1], torch.zeros(count)
    )
    area = float(torch.stack([axis[1] - axis[0] for axis in axes]).prod())
    mass = model.log_likelihood(rows, torch.Generator().manual_seed(1)).exp() * area
    assert float(mass.sum()) == pytest.approx(1.0, abs=0.02)
    mean = (mass.unsqueeze(-1) * grid).sum(0) / mass.sum()
    std = ((mass.unsqueeze(-1) * (grid - mean) ** 2).sum(0) / mass.sum()).sqrt()
    assert ((mean - draws.mean(0)).abs() < 0.05 * std).all()
    torch.testing.assert_close(std, draws.std(0), rtol=0.03, atol=0.0)


def test_model_learns_where_a_step_ends_it_all() -> None:
    data = bimodal(5000, 0)
    model = build("ensemble", data)
    fit(model, data, updates=150)
    with torch.no_grad():
        draw = model.sample(data.observation, data.action, torch.Generator().manual_seed(2))
    clear = (draw.next_observation[:, 0] - 1).abs() > 0.3
    truth = (draw.next_observation[:, 0] > 1).float()
    assert float((draw.termination - truth).abs()[clear].mean()) < 0.1


@every_model
def test_draws_are_differentiable_in_state_and_action_along_fixed_noise(name: str) -> None:
    model = build(name, bimodal(500, 0)).double()
    s = torch.tensor([[0.3], [-0.2]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[0.1], [0.4]], dtype=torch.float64, requires_grad=True)

    def draw(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(model.sample(state, action, torch.Generator().manual_seed(3)))

    assert torch.autograd.gradcheck(draw, (s, a))


@every_model
def test_draws_stay_in_the_range_of_the_data_and_finite(name: str) -> None:
    data = bimodal(500, 0)
    model = build(name, data)
    far = torch.full((500, 1), 1e4).requires_grad_()
    for sign in (-1, 1):
        draw = model.sample(sign * far, sign * far, torch.Generator().manual_seed(0))
        gradient = torch.autograd.grad(draw.next_observation.sum() + draw.reward.sum(), far)[0]
        assert gradient.isfinite().all()
        for drawn, seen in ((draw.next_observation, data.next_observation), (draw.reward, data.reward)):
            assert float(drawn.detach().max()) <= float(seen.max())
            assert float(drawn.detach().min()) >= float(seen.min())
    low, high = model.reward_range
    assert (low, high) == (data.reward.min(), data.reward.max())


@every_model
def test_same_generator_gives_the_same_draw_and_another_one_another(name: str) -> None:
    data = bimodal(50, 0)
    model = build(name, data)

    def draw(seed: int) -> torch.Tensor:
        torch.randn(3)  # the global source must not matter
        with torch.no_grad():
            return model.sample(data.observation, data.action, torch.Generator().manual_seed(seed)).next_observation

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))


@every_model
def test_outcome_is_what_the_base_leaves_to_be_said(name: str) -> None:
    """With the true mean as base, what is learned is noise alone; without it, the change of the observation."""
    data = linear_quadratic(2000, 0)
    plain = build(name, data)
    with_base = MODELS[name](
        observation=plain.observation, action=plain.action, hidden=8, base=lambda s, a: 0.9 * s + 0.5 * a
    )
    with_base.observe(data)
    assert float(with_base.outcome.std[0]) == pytest.approx(DYNAMICS_STD, rel=0.05)
    assert float(plain.outcome.std[0]) == pytest.approx(
        float((data.next_observation - data.observation).std()), rel=0.01
    )
    s, a = data.observation[:5].requires_grad_(), data.action[:5].requires_grad_()
    draws = []
    for model in (with_base, plain):
        given = model.given(s, a)
        drawn = model.outcome.restore(model.draw(given, torch.Generator().manual_seed(0)))[:, :1]
        following = model.sample(s, a, torch.Generator().manual_seed(0)).next_observation
        draws.append(following - drawn)
    torch.testing.assert_close(draws[0], 0.9 * s + 0.5 * a)
    torch.testing.assert_close(draws[1], s)
