import numpy as np
import pytest
import torch

from dst_core.baselines.mmd import MmdLearner
from dst_core.critic import LayerTwoNoiseCritic
from dst_core.mmd import mmd2
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


def learner(*, truncate: float = 0.0) -> MmdLearner:
    torch.manual_seed(0)
    return MmdLearner(
        LayerTwoNoiseCritic(**networks(), noise_size=8, members=2),
        **temporal_difference(),
        samples=10,
        truncate=truncate,
        kernel="multiquadric",
        bandwidth=100.0,
        estimator="unbiased",
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_averaging_over_real_successors_has_the_gradient_of_the_distance_to_their_mixture() -> None:
    """Five successors, four samples of the return given each: gradients agree to rounding, values differ by the successors' spread."""
    returns = torch.Generator().manual_seed(0)
    predicted = torch.randn(6, 1, generator=returns, dtype=torch.float64, requires_grad=True)
    centre = 3 * torch.randn(5, 1, 1, generator=returns, dtype=torch.float64)
    given_successor = centre + torch.randn(5, 4, 1, generator=returns, dtype=torch.float64)
    each = mmd2(predicted, given_successor, bandwidth=100.0).mean()
    mixture = mmd2(predicted, given_successor.flatten(0, 1), bandwidth=100.0)
    torch.testing.assert_close(*(torch.autograd.grad(distance, predicted)[0] for distance in (each, mixture)))
    assert each - mixture > 0.1


def test_terminated_transition_does_not_bootstrap() -> None:
    _, target = learner().loss(transitions(20, terminated=1.0), actor=StillActor(), generator=generator())
    torch.testing.assert_close(target, transitions(20).reward[:, None].expand(20, 20))
    _, going_on = learner().loss(transitions(20), actor=StillActor(), generator=generator())
    assert (going_on != target).all()


def test_truncation_drops_the_largest_of_the_pooled_samples() -> None:
    mmd, batch = learner(truncate=0.2), transitions(4)
    _, target = mmd.loss(batch, actor=StillActor(), generator=generator())
    following = batch.next_observation
    noise = mmd.critic.draw_noise(4, 10, generator())
    samples = mmd.target_critic(following, StillActor()(following), noise).numpy()
    for b in range(4):
        pool = np.array(sorted([*samples[0, b], *samples[1, b]])[:16])
        np.testing.assert_allclose(
            np.sort(target[b].numpy()), batch.reward[b].item() + PROBLEM.discount * pool, rtol=1e-5
        )


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
