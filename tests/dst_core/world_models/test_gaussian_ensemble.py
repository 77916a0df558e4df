import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dst_core.world_model import Transition
from dst_core.world_models.gaussian_ensemble import GaussianEnsemble
from tests.dst_core.world_models.fitting import bimodal, build, fit


def ensemble(data: Transition) -> GaussianEnsemble:
    model = build("ensemble", data)
    assert isinstance(model, GaussianEnsemble)
    return model


def test_model_learns_mean_and_spread_of_a_bimodal_step_but_not_its_modes() -> None:
    data = bimodal(5000, 0)
    model = ensemble(data)
    fit(model, data, updates=300)
    with torch.no_grad():
        s, a = torch.full((4000, 1), 0.2), torch.full((4000, 1), 0.1)
        draw = model.sample(s, a, torch.Generator().manual_seed(2))
    noise = draw.next_observation[:, 0] - 0.3
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 0.51) < 0.05
    assert 0.25 < float((noise.abs() < 0.2).float().mean()) < 0.35  # a Gaussian's 30 %
    assert abs(float(draw.reward.mean()) - 0.4) < 0.02


def test_density_is_that_of_the_uniform_mixture_of_members() -> None:
    data = bimodal(100, 0)
    model = ensemble(data)
    given, outcome = model.standardised(data)
    with torch.no_grad():
        mean, log_std = model._law(given)
        members = Independent(Normal(mean.transpose(0, 1), log_std.exp().transpose(0, 1)), 1)
        expected = MixtureSameFamily(Categorical(torch.ones(100, model.members)), members).log_prob(outcome)
        torch.testing.assert_close(model.log_density(given, outcome, None), expected)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_every_row_is_drawn_by_one_member_chosen_uniformly(rows: int) -> None:
    model = ensemble(bimodal(100, 0))
    with torch.no_grad():
        last = model.networks[-1]
        last.weight.zero_()
        last.bias.zero_()
        last.bias[:, 0, :2] = 10.0 * torch.arange(model.members).unsqueeze(-1)
        last.bias[:, 0, 2:] = -100.0
        given = torch.zeros(rows, 2)
        picked = torch.stack(
            [(model.draw(given, torch.Generator().manual_seed(seed)) / 10).round() for seed in range(200)]
        )
    assert torch.equal(picked[..., 0], picked[..., 1])  # one member for all components of a row
    first_row = picked[:, 0, 0].long().bincount(minlength=model.members)
    assert (first_row > 20).all()
    assert (first_row < 64).all()  # 40 ± 4 standard deviations
    if rows % model.members == 0:
        shares = picked[0, :, 0].long().bincount(minlength=model.members)
        assert (shares == rows // model.members).all()


def test_bootstrap_of_a_member_is_fixed_and_independent_of_the_other_members() -> None:
    data = bimodal(4000, 0)
    model = ensemble(data)
    weights = model.bootstrap_weights(data)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(0))
    model.observe(bimodal(100, 1))  # scales move, the choice must not
    assert torch.equal(model.bootstrap_weights(Transition(*(rows[order] for rows in data))), weights[:, order])
    assert set(weights.unique().tolist()) == {0.0, 2.0}
    correlation = torch.corrcoef(weights)
    assert ((weights.mean(1) - 1).abs() < 0.07).all()
    assert ((correlation - torch.eye(model.members)).abs() < 0.07).all()


def test_member_ignores_the_half_of_the_data_that_is_not_its_own() -> None:
    data = bimodal(400, 0)
    model = ensemble(data)
    model.losses(data)["model_loss"].backward()
    before = [parameter.grad[2].clone() for parameter in model.networks.parameters()]
    kept = model.bootstrap_weights(data)[2] > 0
    model.zero_grad()
    own = Transition(*(rows[kept] for rows in data))
    (model.losses(own)["model_loss"] * len(own.reward) / 400).backward()
    for gradient, parameter in zip(before, model.networks.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad[2], gradient, rtol=1e-4, atol=1e-6)


def test_members_disagree_more_away_from_the_data() -> None:
    data = bimodal(2000, 0)
    model = ensemble(data)
    fit(model, data, updates=150)
    with torch.no_grad():
        spread = [model._law(torch.full((1, 2), at)).mean.std(0).mean() for at in (0.0, 6.0)]
    assert spread[1] > 3 * spread[0]


def test_scale_at_its_limit_still_receives_a_gradient() -> None:
    data = bimodal(50, 0)
    model = ensemble(data)
    with torch.no_grad():
        model.networks[-1].bias[:, 0, 2:] = -12.0
    model.losses(data)["model_loss"].backward()
    assert (model.networks[-1].bias.grad[:, 0, 2:].abs() > 0).all()
