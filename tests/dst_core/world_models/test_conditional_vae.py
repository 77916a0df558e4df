import pytest
import torch

from dst_core.world_models.conditional_vae import ConditionalVae
from tests.dst_core.world_models.fitting import bimodal, build, fit, fitted_to_linear_quadratic, linear_quadratic


def test_model_learns_a_bimodal_step_and_its_reward() -> None:
    data = bimodal(5000, 0)
    model = build("cvae", data)
    fit(model, data, updates=2400, learning_rate=5e-3)
    with torch.no_grad():
        s, a = torch.full((4000, 1), 0.2), torch.full((4000, 1), 0.1)
        draw = model.sample(s, a, torch.Generator().manual_seed(2))
    noise = draw.next_observation[:, 0] - 0.3
    assert abs(float(noise.mean())) < 0.08
    assert abs(float(noise.std()) - 0.51) < 0.08
    # The truth has 0.1 % between its two modes, a Gaussian 30 %.
    assert float((noise.abs() < 0.2).float().mean()) < 0.15
    assert abs(float(draw.reward.mean()) - 0.4) < 0.1


def test_importance_weighted_bound_is_tighter_than_the_evidence_lower_bound() -> None:
    model, data = fitted_to_linear_quadratic("cvae"), linear_quadratic(5000, 1)
    with torch.no_grad():
        elbo = -float(model.losses(data, torch.Generator().manual_seed(0))["model_loss"])
    units = float(model.outcome.std.log().sum())
    assert float(model.log_likelihood(data, torch.Generator().manual_seed(0)).mean()) > elbo - units


def test_elbo_without_latent_is_the_exact_density() -> None:
    """Encoder and prior the same and the decoder blind to z: the bound is tight, and is the decoder's Gaussian."""
    data = linear_quadratic(500, 0)
    model = build("cvae", data)
    assert isinstance(model, ConditionalVae)
    with torch.no_grad():
        for network in (model.encoder, model.prior):
            network[-1].weight.zero_()
            network[-1].bias.zero_()
        model.decoder.latent_in.weight.zero_()
        given, outcome = model.standardised(data)
        mean = model.decoder(given, torch.zeros(500, 2))
        exact = torch.distributions.Normal(mean, model.output_log_std.exp()).log_prob(outcome).sum(-1)
        loss = model.losses(data, torch.Generator().manual_seed(0))["model_loss"]
    assert float(loss) == pytest.approx(-float(exact.mean()), rel=1e-5)
    torch.testing.assert_close(model.log_density(given, outcome, torch.Generator().manual_seed(0)), exact)
