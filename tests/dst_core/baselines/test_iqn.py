import math

import numpy as np
import pytest
import torch

from dst_core.baselines.iqn import ImplicitQuantileCritic, IqnLearner
from dst_core.baselines.quantile_regression import quantile_huber_loss
from tests.dst_core.baselines.learning import (
    PROBLEM,
    StillActor,
    exact,
    fit,
    learned,
    networks,
    temporal_difference,
    transitions,
)


def learner(*, truncate: float = 0.0) -> IqnLearner:
    torch.manual_seed(0)
    return IqnLearner(**networks(), **temporal_difference(), members=2, samples=10, truncate=truncate)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_quantile_is_the_trunk_times_the_cosine_embedding_of_its_fraction() -> None:
    """One critic, one row, one fraction, written out unit by unit."""
    torch.manual_seed(3)
    observation, action, _ = networks().values()
    critic = ImplicitQuantileCritic(observation=observation, action=action, hidden=4, members=1).double()
    critic.return_scale.fill_(2.0)
    s, a, tau = torch.tensor([[0.7]]).double(), torch.tensor([[-0.4]]).double(), 0.3
    with torch.no_grad():
        found = critic(s, a, torch.tensor([[[tau]]]).double()).item()

    def silu(x: float) -> float:
        return x / (1 + math.exp(-x))

    def affine(layer: torch.nn.Module, x: list[float]) -> list[float]:
        weight, bias = layer.weight[0].tolist(), layer.bias[0, 0].tolist()
        return [b + sum(x[i] * weight[i][j] for i in range(len(x))) for j, b in enumerate(bias)]

    inputs = [critic.observation.standardise(s).item(), critic.action.to_unit(a).item()]
    trunk = [silu(x) for x in affine(critic.inner, inputs)]
    embedded = [silu(x) for x in affine(critic.embedding, [math.cos(math.pi * i * tau) for i in range(64)])]
    second = [silu(x) for x in affine(critic.outer, [t * e for t, e in zip(trunk, embedded, strict=True)])]
    (expected,) = affine(critic.head, second)
    np.testing.assert_allclose(found, 2.0 * expected, rtol=1e-6)


def test_action_gradient_agrees_with_finite_differences() -> None:
    critic = learner().critic.double()
    batch, fractions = transitions(5), torch.rand(2, 5, 3, generator=generator(), dtype=torch.float64)
    s, a = batch.observation.double(), batch.action.double().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(s, a, fractions).sum(), a)
    step = 1e-6
    difference = (critic(s, a + step, fractions) - critic(s, a - step, fractions)).sum((0, 2)) / (2 * step)
    torch.testing.assert_close(gradient[:, 0], difference, rtol=1e-6, atol=1e-9)


def test_terminated_transition_does_not_bootstrap() -> None:
    _, target = learner().loss(transitions(20, terminated=1.0), actor=StillActor(), generator=generator())
    torch.testing.assert_close(target, transitions(20).reward[:, None].expand(20, 20))
    _, going_on = learner().loss(transitions(20), actor=StillActor(), generator=generator())
    assert (going_on != target).all()


def test_truncation_drops_the_largest_of_the_pooled_samples_and_every_critic_regresses_on_the_rest() -> None:
    iqn, batch = learner(truncate=0.2), transitions(4)
    iqn.critic.return_scale.fill_(3.0)
    loss, target = iqn.loss(batch, actor=StillActor(), generator=generator())
    same = generator()
    drawn, fractions = torch.rand(2, 4, 10, generator=same), torch.rand(2, 4, 10, generator=same)
    following = batch.next_observation
    samples = iqn.target_critic(following, StillActor()(following), drawn).numpy()
    predicted = iqn.critic(batch.observation, batch.action, fractions)
    expected = 0.0
    for b in range(4):
        pool = np.array(sorted([*samples[0, b], *samples[1, b]])[:16])
        np.testing.assert_allclose(
            np.sort(target[b].numpy()), batch.reward[b].item() + PROBLEM.discount * pool, rtol=1e-5
        )
        expected += sum(quantile_huber_loss(predicted[e, b] / 3, fractions[e, b], target[b] / 3) / 4 for e in range(2))
    torch.testing.assert_close(loss, expected)


def test_samples_have_the_mean_and_roughly_the_spread_of_the_return() -> None:
    truth, found = exact(), learned(fit(learner, updates=400))
    np.testing.assert_allclose(found["mean"], truth["mean"], atol=0.15)
    np.testing.assert_allclose(found["std"], truth["std"], atol=0.2)


@pytest.mark.slow
def test_samples_have_the_mean_spread_and_gradient_of_the_return() -> None:
    truth, found = exact(), learned(fit(learner, updates=3000))
    np.testing.assert_allclose(found["mean"], truth["mean"], atol=0.1)
    np.testing.assert_allclose(found["std"], truth["std"], rtol=0.15, atol=0.05)
    np.testing.assert_allclose(found["gradient"], truth["gradient"], atol=0.05)
