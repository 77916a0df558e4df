import numpy as np
import pytest
import torch

from dst_core.baselines.quantile_regression import quantile_huber_loss
from dst_core.baselines.tqc import TqcLearner
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


def learner(*, truncate: float = 0.0) -> TqcLearner:
    torch.manual_seed(0)
    return TqcLearner(**networks(), **temporal_difference(), members=2, quantiles=25, truncate=truncate)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_truncation_drops_the_largest_of_the_pooled_quantiles() -> None:
    """A share of 0.3 of 2 x 25 drops 15, wherever they come from."""
    tqc, batch = learner(truncate=0.3), transitions(6)
    _, target = tqc.loss(batch, actor=StillActor(), generator=generator())
    quantiles = tqc.target_critic(batch.next_observation, StillActor()(batch.next_observation)).numpy()
    for b in range(6):
        pool = sorted([*quantiles[0, b], *quantiles[1, b]])[:35]
        expected = batch.reward[b].item() + PROBLEM.discount * np.array(pool)
        np.testing.assert_allclose(np.sort(target[b].numpy()), expected, rtol=1e-5)


def test_terminated_transition_does_not_bootstrap() -> None:
    _, target = learner().loss(transitions(20, terminated=1.0), actor=StillActor(), generator=generator())
    torch.testing.assert_close(target, transitions(20).reward[:, None].expand(20, 50))
    _, going_on = learner().loss(transitions(20), actor=StillActor(), generator=generator())
    assert (going_on != target).all()


def test_every_critic_regresses_its_quantiles_on_the_pooled_target_over_the_return_scale() -> None:
    tqc, batch = learner(truncate=0.1), transitions(4)
    tqc.critic.return_scale.fill_(3.0)
    loss, target = tqc.loss(batch, actor=StillActor(), generator=generator())
    quantiles = tqc.critic(batch.observation, batch.action)
    fractions = torch.tensor([(i + 0.5) / 25 for i in range(25)])
    expected = sum(
        quantile_huber_loss(quantiles[e, b] / 3, fractions, target[b] / 3) / 4 for e in range(2) for b in range(4)
    )
    torch.testing.assert_close(loss, expected)
    assert tqc.returns(batch.observation, batch.action, generator()).shape == (2, 4, 25)


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
