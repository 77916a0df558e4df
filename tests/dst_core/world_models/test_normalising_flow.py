import pytest
import torch

from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import Transition
from dst_core.world_models.normalising_flow import NormalisingFlow
from tests.dst_core.world_models.fitting import bimodal, build, fit


def test_model_learns_a_bimodal_step_and_its_reward() -> None:
    data = bimodal(5000, 0)
    model = build("flow", data)
    fit(model, data, updates=200)
    with torch.no_grad():
        s, a = torch.full((4000, 1), 0.2), torch.full((4000, 1), 0.1)
        draw = model.sample(s, a, torch.Generator().manual_seed(2))
    noise = draw.next_observation[:, 0] - 0.3
    assert abs(float(noise.mean())) < 0.08
    assert abs(float(noise.std()) - 0.51) < 0.08
    # The truth has 0.1 % between its two modes, a Gaussian 30 %.
    assert float((noise.abs() < 0.2).float().mean()) < 0.08
    assert abs(float(draw.reward.mean()) - 0.4) < 0.05


@pytest.mark.parametrize("size", [1, 2, 6])
def test_density_of_a_draw_is_that_of_its_noise_divided_by_the_volume_it_spans(size: int) -> None:
    """The change of variables against the determinant of the draw's Jacobian by autograd, for outcomes of 2, 3 and 7 numbers."""
    torch.manual_seed(0)
    model = NormalisingFlow(
        observation=Standardiser(size), action=ActionScale(-torch.ones(1), torch.ones(1)), hidden=16
    ).double()
    generator = torch.Generator().manual_seed(1)
    given = torch.randn(1, size + 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(1, size + 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    outcome = model.draw(given, torch.Generator().manual_seed(2))
    transform = model.flow(given).transform.inv
    jacobian = torch.autograd.functional.jacobian(lambda z: transform(z)[0], noise)[:, 0]
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum() - jacobian.det().abs().log()
    torch.testing.assert_close(outcome, transform(noise))
    torch.testing.assert_close(model.log_density(given, outcome, None)[0], expected)


def test_every_component_of_a_draw_depends_on_observation_and_action() -> None:
    torch.manual_seed(0)
    model = NormalisingFlow(observation=Standardiser(4), action=ActionScale(-torch.ones(2), torch.ones(2)), hidden=16)
    given = torch.zeros(1, 6)
    jacobian = torch.autograd.functional.jacobian(lambda g: model.draw(g, torch.Generator().manual_seed(0))[0], given)
    assert (jacobian.abs() > 0).all()


def test_step_without_any_noise_keeps_draws_and_gradients_finite() -> None:
    data = bimodal(2000, 0)
    data = Transition(
        data.observation, data.action, torch.ones(2000), data.observation + 0.1 * data.action, torch.zeros(2000)
    )
    model = build("flow", data)
    fit(model, data, updates=80)
    s, a = data.observation.repeat(10, 1).requires_grad_(), data.action.repeat(10, 1).requires_grad_()
    draw = model.sample(s, a, torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(draw.next_observation.sum(), (s, a))
    assert all(bool(value.isfinite().all()) for value in (*draw, *gradients))
    assert torch.equal(draw.reward, torch.ones(20_000))
    assert model.log_likelihood(data).isfinite().all()
    assert float((draw.next_observation - s - 0.1 * a).detach().std()) < 0.05
