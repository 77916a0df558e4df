"""Replayed steps keep their values and take their derivatives from the model, along noise that the model finds behind them."""

import pytest
import torch
from torch import Tensor

from dst_core.targets import copied, replayed_steps
from dst_core.world_model import LearnedModel, ReplayedSteps, Transition
from dst_core.world_models.conditional_vae import ConditionalVae
from dst_core.world_models.gaussian_ensemble import GaussianEnsemble
from dst_core.world_models.normalising_flow import NormalisingFlow
from tests.dst_core.linear_quadratic import LinearQuadratic
from tests.dst_core.world_models.fitting import (
    MODELS,
    bimodal,
    build,
    fit,
    fitted_to_linear_quadratic,
    linear_quadratic,
)

DATA = linear_quadratic(200, 3)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def slope(steps: ReplayedSteps, transition: Transition) -> Tensor:
    """Of the next observation by the action, (B, 1)."""
    action = transition.action.clone().requires_grad_()
    draw = steps.sample(transition.observation, action, generator())
    (by_action,) = torch.autograd.grad(draw.next_observation.sum(), action)
    return by_action


@pytest.mark.parametrize("name", MODELS)
def test_values_are_those_of_the_replay_even_of_a_model_that_knows_nothing(name: str) -> None:
    with torch.no_grad():
        draw = ReplayedSteps(build(name, DATA), DATA).sample(DATA.observation, DATA.action, generator())
    assert torch.equal(draw.next_observation, DATA.next_observation)
    assert torch.equal(draw.reward, DATA.reward)
    assert torch.equal(draw.termination, DATA.terminated)


@pytest.mark.parametrize("name", MODELS)
def test_derivatives_are_those_of_the_step_once_the_model_has_learned_it(name: str) -> None:
    model, problem = fitted_to_linear_quadratic(name), LinearQuadratic.scalar()
    inner = Transition(*(rows[DATA.observation[:, 0].abs() < 1.5] for rows in DATA))
    by_action = slope(ReplayedSteps(model, inner), inner)
    assert float(by_action.mean()) == pytest.approx(problem.B.item(), abs=0.05)


def along_fixed_noise(model: LearnedModel, given: Tensor, outcome: Tensor, moved: Tensor) -> Tensor:
    """The outcome at `moved` inputs, with the noise behind `outcome` at `given`; models of one mode."""
    if isinstance(model, NormalisingFlow):
        return model.flow(moved).transform.inv(model.flow(given).transform(outcome))
    assert isinstance(model, GaussianEnsemble)
    here, there = model._law(given), model._law(moved)
    return (there.mean + there.log_std.exp() * (outcome - here.mean) / here.log_std.exp())[0]


@pytest.mark.parametrize("name", ["flow", "ensemble"])
def test_derivatives_equal_finite_differences_along_the_noise_behind_the_outcome(name: str) -> None:
    torch.manual_seed(0)
    model = build(name, DATA).double()
    if isinstance(model, GaussianEnsemble):
        model = GaussianEnsemble(observation=model.observation, action=model.action, hidden=32, members=1).double()
        model.observe(DATA)
    given, outcome = (rows.double() for rows in model.standardised(DATA))
    given.requires_grad_()
    (found,) = torch.autograd.grad(model.redraw(given, outcome, generator())[:, 0].sum(), given)
    step = 1e-6
    with torch.no_grad():
        for column in range(given.shape[1]):
            move = step * torch.eye(given.shape[1], dtype=torch.float64)[column]
            up, down = (along_fixed_noise(model, given, outcome, given + sign * move)[:, 0] for sign in (1, -1))
            torch.testing.assert_close(found[:, column], (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


def test_derivatives_of_a_conditional_vae_equal_finite_differences_of_its_draw_along_the_inferred_noise() -> None:
    model = build("cvae", DATA).double()
    assert isinstance(model, ConditionalVae)
    given, outcome = (rows.double() for rows in model.standardised(DATA))
    of_posterior = model.fit_noise(len(given), generator())
    given.requires_grad_()
    (found,) = torch.autograd.grad(model.redraw_along(given, outcome, of_posterior)[:, 0].sum(), given)
    with torch.no_grad():
        prior_mean, prior_log_std = model.prior(given).chunk(2, -1)
        latent = model._inferred(given, outcome, of_posterior)
        left = (outcome - model.decoder(given, latent)) / model.output_log_std.exp()
        noise = torch.cat([(latent - prior_mean) / prior_log_std.exp(), left], -1)
        torch.testing.assert_close(model.draw_along(given, noise), outcome)
        step = 1e-6
        for column in range(given.shape[1]):
            move = step * torch.eye(given.shape[1], dtype=torch.float64)[column]
            up, down = (model.draw_along(given + sign * move, noise)[:, 0] for sign in (1, -1))
            torch.testing.assert_close(found[:, column], (up - down) / (2 * step), rtol=1e-5, atol=1e-7)


def test_latents_inferred_behind_data_have_the_law_they_are_drawn_from_and_explain_the_data() -> None:
    """Otherwise gradients along them would have another law than those of imagined steps, or be those of another mode."""
    data = bimodal(5000, 0)
    model = build("cvae", data)
    assert isinstance(model, ConditionalVae)
    fit(model, data, updates=1200, learning_rate=5e-3)
    with torch.no_grad():
        given, outcome = model.standardised(data)
        latent = model._inferred(given, outcome, model.fit_noise(len(given), generator()))
        mean, log_std = model.prior(given).chunk(2, -1)
        noise = (latent - mean) / log_std.exp()
        left = (outcome - model.decoder(given, latent)) / model.output_log_std.exp()
    assert float(noise.mean(0).abs().max()) < 0.15
    assert float((noise.std(0) - 1).abs().max()) < 0.15
    assert float(left.square().mean(0).max()) < 1.3


def test_an_outcome_is_redrawn_by_a_member_that_may_have_made_it() -> None:
    """Members say each another change, all of them surely, and the first one alone says it of every input alike."""
    torch.manual_seed(0)
    model = build("ensemble", DATA)
    assert isinstance(model, GaussianEnsemble)
    last, which = model.networks[-1], torch.arange(len(DATA.reward)) % model.members
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
        last.bias[:, 0, model.outcome_size :] = -3.0
        last.bias[:, 0, 0] = torch.arange(float(model.members))
        last.weight[1:, :, 0] = 1e-3
        given, _ = model.standardised(DATA)
        outcome = model._law(given).mean[which, torch.arange(len(given))]
    given.requires_grad_()
    (slope,) = torch.autograd.grad(model.redraw(given, outcome, generator())[:, 0].sum(), given)
    assert torch.equal((slope == 0).all(1), which == 0)


def test_a_step_of_the_models_own_is_part_of_the_derivatives() -> None:
    """As in the hybrid model, whose base is MuJoCo's step."""
    torch.manual_seed(0)
    plain = build("cvae", DATA).double()
    hybrid = ConditionalVae(
        observation=plain.observation, action=plain.action, hidden=32, latent=2, base=lambda s, a: s + a.sin()
    ).double()
    data = Transition(*(rows.double() for rows in DATA))
    hybrid.observe(data)
    action = data.action.clone().requires_grad_()
    draw = ReplayedSteps(hybrid, data).sample(data.observation, action, generator())
    assert torch.equal(draw.next_observation, data.next_observation)
    (whole,) = torch.autograd.grad(draw.next_observation.sum(), action)
    action = data.action.clone().requires_grad_()
    _, outcome = hybrid.standardised(data)
    redrawn = hybrid.outcome.restore(hybrid.redraw(hybrid.given(data.observation, action), outcome, generator()))
    (residual,) = torch.autograd.grad(redrawn[:, 0].sum(), action)
    torch.testing.assert_close(whole, residual + data.action.cos())


def test_every_copy_of_a_row_has_that_rows_step() -> None:
    copies = (2, len(DATA.reward), 3)
    observation, action = copied(DATA.observation, copies), copied(DATA.action, copies)
    draw = replayed_steps(build("cvae", DATA), DATA, copies).sample(observation, action, generator())
    assert torch.equal(draw.reward.view(copies), DATA.reward[None, :, None].expand(copies))
    assert torch.equal(observation.view(*copies, 1)[1, :, 2], DATA.observation)
