import numpy as np
import pytest
import torch

from dst_core.baselines.td3 import SMOOTHING_CLIP, SMOOTHING_STD, Td3Learner
from tests.dst_core.baselines.learning import (
    PROBLEM,
    WIDTH,
    StillActor,
    clipped_normal_variance,
    cross_twins,
    exact,
    fit,
    learned,
    networks,
    temporal_difference,
    transitions,
)


def learner() -> Td3Learner:
    torch.manual_seed(0)
    return Td3Learner(**networks(), **temporal_difference(learning_rate=3e-3))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_target_takes_the_lesser_twin() -> None:
    td3, batch = learner(), transitions(50)
    cross_twins(td3.target_critic, batch.next_observation, StillActor()(batch.next_observation))
    with torch.no_grad():
        _, target = td3.loss(batch, actor=StillActor(), generator=generator())
        noise = torch.randn(50, 1, generator=generator()) * SMOOTHING_STD
        action = WIDTH * noise.clamp(-SMOOTHING_CLIP, SMOOTHING_CLIP)
        first, second = td3.target_critic(batch.next_observation, action)
    assert (first < second).any()
    assert (second < first).any()
    expected = batch.reward + PROBLEM.discount * torch.minimum(first, second)[:, 0]
    torch.testing.assert_close(target[:, 0], expected)


def test_terminated_transition_does_not_bootstrap() -> None:
    _, target = learner().loss(transitions(20, terminated=1.0), actor=StillActor(), generator=generator())
    torch.testing.assert_close(target[:, 0], transitions(20).reward)
    _, going_on = learner().loss(transitions(20), actor=StillActor(), generator=generator())
    assert (going_on != target).all()


def test_smoothed_action_stays_within_its_limits() -> None:
    """An actor at the limit: noise beyond it changes nothing, so that half of the target actions are the limit itself."""
    td3, seen = learner(), []
    td3.target_critic.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    at_limit = torch.nn.Module()
    at_limit.forward = lambda observation: torch.full((len(observation), 1), WIDTH)
    td3.loss(transitions(1000), actor=at_limit, generator=generator())
    (action,) = seen
    assert action.max() == WIDTH
    assert action.min() >= WIDTH * (1 - SMOOTHING_CLIP)
    assert (action == WIDTH).float().mean() == pytest.approx(0.5, abs=0.05)


def test_loss_is_the_sum_of_the_twins_mean_squared_errors_over_the_return_scale() -> None:
    td3, batch = learner(), transitions(8)
    td3.critic.return_scale.fill_(3.0)
    loss, target = td3.loss(batch, actor=StillActor(), generator=generator())
    values = td3.critic(batch.observation, batch.action)
    expected = sum(((target - values[e]) ** 2).mean() / 9 for e in range(2))
    torch.testing.assert_close(loss, expected)


def test_actor_climbs_the_first_twin_alone() -> None:
    td3, batch = learner(), transitions(8)
    returns = td3.returns(batch.observation, batch.action, generator())
    torch.testing.assert_close(returns, td3.critic(batch.observation, batch.action)[:1])
    assert returns.shape == (1, 8, 1)


def test_value_is_the_mean_return_of_the_smoothed_policy() -> None:
    """The smoothing noise costs about 0.06 everywhere, which the tolerance does not hide."""
    truth = exact(smoothing_variance=WIDTH**2 * clipped_normal_variance(SMOOTHING_STD, SMOOTHING_CLIP))
    found = learned(fit(learner, updates=600))
    np.testing.assert_allclose(found["mean"], truth["mean"], atol=0.05)
    np.testing.assert_allclose(found["gradient"], truth["gradient"], atol=0.05)
