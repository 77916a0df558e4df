import numpy as np
import pytest
import torch
from torch import Tensor

from dst_core.actor import Actor
from dst_core.baselines.mage import MageLearner
from dst_core.world_model import ModelDraw
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
from tests.dst_core.linear_quadratic import LinearActor


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def learner(policy=torch.zeros_like, *, gradient_penalty: float = 5.0) -> MageLearner:
    torch.manual_seed(0)
    return MageLearner(
        policy=policy,
        gradient_penalty=gradient_penalty,
        **networks(),
        **(temporal_difference(learning_rate=3e-3) | {"max_gradient_norm": 1e9}),
    )


class CurvedModel:
    """A step that is linear in nothing, whose end depends on where it leads."""

    def __init__(self, *, reward_range: tuple[float, float] = (-torch.inf, torch.inf)) -> None:
        low, high = reward_range
        self.reward_range = (torch.tensor(low), torch.tensor(high))

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> ModelDraw:
        noise = torch.randn(observation.shape, generator=generator, dtype=observation.dtype)
        following = torch.sin(observation + 0.7 * action) + 0.2 * noise
        reward = (following * torch.cos(action) + 0.3 * observation).sum(-1)
        return ModelDraw(following, reward, torch.sigmoid(3 * following.sum(-1)))


def actor() -> Actor:
    torch.manual_seed(5)
    observation, action, hidden = networks().values()
    return Actor(observation=observation, action=action, hidden=hidden)


def test_slope_of_the_td_error_agrees_with_finite_differences() -> None:
    mage, target_actor = learner(), actor().double()
    mage.critic.return_scale.fill_(3.0)
    mage, observation = mage.double(), transitions(30).observation.double()
    given = {"model": CurvedModel(), "actor": target_actor}
    base = torch.linspace(-1.0, 1.0, 30, dtype=torch.float64)[:, None]

    def errors(shift: float) -> tuple[Tensor, Tensor]:
        mage.policy = lambda _: base + shift
        error, slope, _ = mage.errors(observation, **given, generator=generator())
        return error.detach(), slope.detach()

    step = 1e-6
    difference = (errors(step)[0] - errors(-step)[0]) / (2 * step)
    torch.testing.assert_close(errors(0.0)[1][..., 0], difference * WIDTH, rtol=1e-6, atol=1e-8)


def test_critics_receive_the_gradient_of_the_published_loss_with_the_actors_graph_behind_the_action() -> None:
    """Written as one graph: nothing detached but the parameters of target networks."""
    policy, target_actor, model, scale = actor(), actor(), CurvedModel(), 3.0
    mage, batch = learner(policy.forward), transitions(30)
    mage.critic.return_scale.fill_(scale)
    action = policy(batch.observation)
    same = generator()
    draw = model.sample(batch.observation, action, same)
    noise = (0.2 * torch.randn(30, 1, generator=same)).clamp(-0.5, 0.5)
    smoothed = (target_actor(draw.next_observation) / WIDTH + noise).clamp(-1, 1) * WIDTH
    twins = mage.target_critic(draw.next_observation, smoothed)[..., 0]
    target = draw.reward + PROBLEM.discount * (1 - draw.termination) * torch.minimum(twins[0], twins[1])
    loss = torch.zeros(())
    for q in mage.critic(batch.observation, action)[..., 0]:
        delta = target - q
        (slope,) = torch.autograd.grad(delta.sum(), action, create_graph=True, retain_graph=True)
        for size, weight in ((delta.abs() / scale, 1.0), (slope.norm(dim=1) * WIDTH / scale, 5.0)):
            # The target is no function of the critic's parameters, so the graph through it adds nothing to their gradient.
            loss = loss + weight * torch.where(size < 1, 0.5 * size**2, size - 0.5).mean()
    parameters = list(mage.critic.parameters())
    expected = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    info = mage.step(batch, model=model, actor=target_actor, generator=generator())
    torch.testing.assert_close(info["critic_loss"], loss.detach())
    for parameter, gradient in zip(parameters, expected, strict=True):
        found = parameter.grad
        torch.testing.assert_close(
            found, torch.zeros_like(found) if gradient is None else gradient, rtol=1e-3, atol=1e-6
        )


def test_step_moves_the_critics_and_no_actor() -> None:
    policy, target_actor = actor(), actor()
    mage = learner(policy.forward)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    critic = [parameter.clone() for parameter in mage.critic.parameters()]
    mage.step(transitions(30), model=CurvedModel(), actor=target_actor, generator=generator())
    torch.testing.assert_close(dict(policy.state_dict()), before, rtol=0, atol=0)
    assert all(parameter.grad is None for network in (policy, target_actor) for parameter in network.parameters())
    assert all((now != then).any() for now, then in zip(mage.critic.parameters(), critic, strict=True))
    assert not any(name.startswith("policy") for name, _ in mage.named_parameters())


def test_imagined_end_does_not_bootstrap() -> None:
    class Ended(CurvedModel):
        def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> ModelDraw:
            draw = super().sample(observation, action, generator)
            self.reward = draw.reward.detach()
            return draw._replace(termination=torch.ones_like(draw.reward))

    model, observation = Ended(), transitions(30).observation
    _, _, target = learner().errors(observation, model=model, actor=StillActor(), generator=generator())
    torch.testing.assert_close(target[:, 0], model.reward)
    _, _, going_on = learner().errors(observation, model=CurvedModel(), actor=StillActor(), generator=generator())
    assert (going_on != target).all()


def test_target_is_held_within_the_returns_that_rewards_allow_and_its_slope_is_left() -> None:
    observation = transitions(30).observation
    given = {"actor": StillActor(), "generator": generator()}
    _, free_slope, free = learner().errors(observation, model=CurvedModel(), **given)
    held_model = CurvedModel(reward_range=(-0.05, 0.1))
    _, slope, held = learner().errors(observation, model=held_model, actor=StillActor(), generator=generator())
    torch.testing.assert_close(held, free.clamp(-0.1, 0.2))
    assert (held != free).any()
    torch.testing.assert_close(slope, free_slope)


def test_actor_climbs_the_lesser_twin() -> None:
    mage, batch = learner(), transitions(50)
    cross_twins(mage.critic, batch.observation, batch.action)
    first, second = mage.critic(batch.observation, batch.action)
    returns = mage.returns(batch.observation, batch.action, generator())
    torch.testing.assert_close(returns, torch.minimum(first, second)[None])
    assert (first < second).any()
    assert (second < first).any()


def test_mage_without_a_world_model_is_refused() -> None:
    with pytest.raises(ValueError, match="world model"):
        learner().step(transitions(4), model=None, actor=StillActor(), generator=generator())


def test_world_model_that_is_not_differentiable_is_refused_though_its_reward_is() -> None:
    class Detached(CurvedModel):
        def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> ModelDraw:
            draw = super().sample(observation, action, generator)
            return draw._replace(next_observation=draw.next_observation.detach())

    observation = torch.zeros(4, networks()["observation"].mean.shape[-1])
    with pytest.raises(ValueError, match="differentiable in the action, Detached is not"):
        learner().errors(observation, model=Detached(), actor=actor(), generator=generator())


def slopes_along_the_policy(mage: MageLearner) -> np.ndarray:
    states = torch.linspace(-1.5, 1.5, 7)[:, None]
    action = LinearActor(PROBLEM)(states).requires_grad_()
    values = mage.returns(states, action, generator())
    (slope,) = torch.autograd.grad(values.sum(), action)
    return slope[:, 0].numpy()


def test_penalty_teaches_the_action_gradient_that_the_td_error_leaves_free() -> None:
    """Only the policy's own actions are seen, where the value alone says nothing about other actions."""
    states = np.linspace(-1.5, 1.5, 7)
    truth = np.array(
        [PROBLEM.closed_form(np.array([s]), -PROBLEM.K[0] * s)["action_gradient_mean"].item() for s in states]
    )
    policy = LinearActor(PROBLEM).forward
    error = {
        penalty: np.abs(
            slopes_along_the_policy(fit(lambda p=penalty: learner(policy, gradient_penalty=p), updates=400)) - truth
        )
        for penalty in (0.0, 5.0)
    }
    assert error[5.0].max() < 0.2, error
    assert error[5.0].mean() < 0.25 * error[0.0].mean(), error


@pytest.mark.slow
def test_value_and_gradient_are_those_of_the_smoothed_policy() -> None:
    draws = torch.Generator().manual_seed(3)

    def anywhere(observation: Tensor) -> Tensor:
        return WIDTH * (2 * torch.rand(observation.shape, generator=draws) - 1)

    truth = exact(smoothing_variance=WIDTH**2 * clipped_normal_variance(0.2, 0.5))
    found = learned(fit(lambda: learner(anywhere), updates=1500))
    np.testing.assert_allclose(found["mean"], truth["mean"], atol=0.1)
    np.testing.assert_allclose(found["gradient"], truth["gradient"], atol=0.05)
