"""The evaluation critic owes nothing to the critics that trained the actor, nor to their pessimism."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dst_core.agent_config import AgentConfig
from dst_core.critic import GenerativeCritic, LayerTwoNoiseCritic
from dst_core.evaluation_critic import fit_evaluation_critic
from dst_core.execution import EAGER
from dst_core.forecast import Forecast
from dst_core.metrics import Metrics
from dst_core.model_returns import model_returns
from dst_core.networks import ActionScale, Standardiser
from dst_core.progress import TrainingProgress
from dst_core.replay import Replay
from dst_core.run import Run, load_run
from dst_core.train import train
from dst_core.world_model import ModelDraw, Transition
from tests.dst_core.small_run import small_run


class AboutOneAStep:
    """Reward 1 - a^2 / 2 + noise N(0, 1) at every step for ever.

    With a = 0 the return is N(1 / (1 - discount), noise^2 / (1 - discount^2)).
    """

    reward_range = (torch.tensor(-torch.inf), torch.tensor(torch.inf))

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        moved = torch.randn(observation.shape, generator=generator)
        cost = 0.5 * action.square().sum(-1)
        reward = 1 + self.noise * torch.randn(cost.shape, generator=generator) - cost
        return ModelDraw(0.5 * observation + 0.5 * moved + 0 * action, reward, 0 * cost)


class Still(nn.Module):
    def forward(self, observation: Tensor) -> Tensor:
        return 0 * observation


def fitted(model: AboutOneAStep, *, config: AgentConfig, return_scale: float, updates: int) -> Tensor:
    """Return samples (9, 2 x 500) of a fresh critic after so many updates."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    limit = torch.ones(1)
    critic = LayerTwoNoiseCritic(
        observation=Standardiser(1), action=ActionScale(-limit, limit), hidden=16, noise_size=4, members=2
    )
    critic.return_scale.fill_(return_scale)
    replay = Replay(capacity=4000, observation_size=1, action_size=1, device=torch.device("cpu"))
    for _ in range(4000):
        state = torch.randn(1, 1, generator=generator)
        replay.add(
            Transition(state, 2 * torch.rand(1, 1, generator=generator) - 1, torch.ones(1), state, torch.zeros(1))
        )
    imagined = model_returns(
        replay, most=4000, batch=32, model=model, actor=Still(), discount=config.discount, generator=generator
    )
    assert imagined is not None
    forecast = Forecast(critic, imagined, config=config, updates=updates)
    for _ in range(updates):
        forecast.step(replay.sample(32, generator), model=model, actor=Still(), generator=generator)
    state = torch.linspace(-1, 1, 9)[:, None]
    with torch.no_grad():
        returns: Tensor = forecast.critic(state, 0 * state, forecast.critic.draw_noise(9, 500, generator))
    return returns.transpose(0, 1).flatten(1)


def test_fresh_critic_reaches_the_return_of_a_long_horizon() -> None:
    config = AgentConfig(discount=0.99, samples=4)
    returns = fitted(AboutOneAStep(0.0), config=config, return_scale=20.0, updates=600)
    assert float(returns.mean()) == pytest.approx(100, abs=0.3)


def test_training_critics_truncation_and_biased_estimator_do_not_reach_the_law() -> None:
    config = AgentConfig(discount=0.8, samples=4, truncate=0.5, estimator="biased")
    returns = fitted(AboutOneAStep(1.0), config=config, return_scale=5.0, updates=800)
    assert float(returns.mean()) == pytest.approx(5, abs=0.15)
    assert float(returns.std(1).mean()) == pytest.approx(1 / math.sqrt(1 - 0.8**2), rel=0.12)


def finished(out: Path, **changes: object) -> Run:
    assert train(small_run(out, **changes)) == 0
    return load_run(out)


def fit_again(run: Run, out: Path) -> GenerativeCritic:
    metrics = Metrics(out, step=run.progress["step"], size=run.progress["metrics_size"])
    with TrainingProgress(run.config, start=run.progress["step"]) as progress:
        assert fit_evaluation_critic(
            run, updates=5, execution=EAGER, progress=progress, metrics=metrics, interrupted=lambda: False
        )
    metrics.close()
    return run.forecast


def same(one: nn.Module, other: nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return all(torch.equal(a[name], b[name]) for name in a)


def test_evaluation_critic_depends_on_the_actor_and_not_on_what_the_training_critics_learned(tmp_path: Path) -> None:
    run, other_critics, other_actor = finished(tmp_path), load_run(tmp_path), load_run(tmp_path)
    with torch.no_grad():
        for learned in (*other_critics.agent.critics.critic.parameters(), other_critics.agent.critics.scale.std):
            learned.fill_(3.0)
        other_actor.agent.actor.layers[-1].bias += 0.5
    learned = run.forecast
    assert same(fit_again(other_critics, tmp_path), learned)
    assert not same(fit_again(other_actor, tmp_path), learned)


def test_fresh_critics_of_two_seeds_differ_and_have_the_scale_of_the_training_critics(tmp_path: Path) -> None:
    one, other = (finished(tmp_path / str(seed), seed=seed) for seed in (0, 1))
    assert not torch.equal(one.fresh_critic().head.weight, other.fresh_critic().head.weight)
    assert same(one.fresh_critic(), one.fresh_critic())
    assert not torch.equal(one.fresh_critic().head.weight, one.agent.critics.critic.head.weight)
    scale = one.agent.critics.critic.return_scale
    assert float(scale) != 1
    assert torch.equal(one.fresh_critic().return_scale, scale)


def test_fit_leaves_noise_agent_and_replay_of_the_run_as_they_were(tmp_path: Path) -> None:
    run = finished(tmp_path)
    before = {name: value.clone() for name, value in run.agent.state_dict().items()}
    noise = run.generator.get_state()
    fit_again(run, tmp_path)
    assert torch.equal(run.generator.get_state(), noise)
    assert all(torch.equal(value, before[name]) for name, value in run.agent.state_dict().items())
