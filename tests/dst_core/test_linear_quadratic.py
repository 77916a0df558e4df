"""The whole critic, end to end, against the exact law of the linear-quadratic-Gaussian problem (method, section 7)."""

import numpy as np
import pytest
import torch

from dst_core.agent_config import AgentConfig
from dst_core.critic import GenerativeCritic, JointSamples
from dst_core.forecast import Forecast
from dst_core.networks import ActionScale, Standardiser, descend
from dst_core.world_model import ConditionalVae, StepModel, Transition
from tests.dst_core.linear_quadratic import LinearActor, LinearQuadratic, TrueSimulator

POINTS = ((0.0, 0.0), (1.0, 1.0), (-1.0, 0.5), (1.5, -1.0))
WIDTH = 2.5


@pytest.fixture(scope="module")
def problem() -> LinearQuadratic:
    return LinearQuadratic.scalar()


@pytest.fixture(scope="module")
def data(problem: LinearQuadratic) -> Transition:
    return problem.transitions(count=20_000, width=WIDTH, seed=1)


def batches(data: Transition, batch: int, generator: torch.Generator):
    index = torch.randint(len(data.reward), (batch,), generator=generator)
    return Transition(*(rows[index] for rows in data))


def scales(data: Transition) -> tuple[Standardiser, ActionScale]:
    observation = Standardiser(data.observation.shape[1])
    observation.update(data.observation)
    limit = torch.full((data.action.shape[1],), WIDTH)
    return observation, ActionScale(-limit, limit)


def fitted_vae(data: Transition, *, updates: int) -> ConditionalVae:
    torch.manual_seed(3)
    generator = torch.Generator().manual_seed(4)
    observation, action = scales(data)
    model = ConditionalVae(observation=observation, action=action, hidden=64, latent=4)
    model.observe(data)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.01, total_iters=updates)
    for _ in range(updates):
        losses = model.losses(batches(data, 256, generator), generator)
        descend(optimiser, torch.stack(list(losses.values())).sum(), max_gradient_norm=10.0)
        schedule.step()
    return model


def fitted_critic(
    problem: LinearQuadratic,
    data: Transition,
    model: StepModel,
    *,
    updates: int,
    batch: int,
    samples: int,
) -> GenerativeCritic:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    observation, action = scales(data)
    start = GenerativeCritic(observation=observation, action=action, hidden=64, noise_size=8, members=2)
    start.return_scale.fill_(5.0)
    config = AgentConfig(discount=problem.discount, samples=samples, hidden=64, noise_size=8)
    forecast = Forecast(start, config=config, updates=updates)
    for _ in range(updates):
        forecast.step(batches(data, batch, generator), model=model, actor=LinearActor(problem), generator=generator)
    return forecast.critic


def samples_at(critic: GenerativeCritic, s: float, a: float) -> JointSamples:
    noise = critic.draw_noise(1, 20_000, torch.Generator().manual_seed(7))
    with torch.no_grad():
        return critic.joint(torch.tensor([[s]]), torch.tensor([[a]]), noise)


def check_law(
    problem: LinearQuadratic,
    critic: GenerativeCritic,
    *,
    mean: float,
    absolute: float,
    spread: float,
    correlation: float,
) -> None:
    """Every critic's joint law at the four points, each tolerance as the caller states it."""
    wrong = []
    for s, a in POINTS:
        truth = problem.closed_form(np.array([s]), np.array([a]))
        returns, gradients = problem.simulate(np.array([s]), np.array([a]), runs=100_000, steps=80, seed=5)
        true_correlation = np.corrcoef(returns, gradients[:, 0])[0, 1]
        joint = samples_at(critic, s, a)
        for member in range(critic.members):
            z, g = joint.returns[member, 0].numpy(), joint.action_gradient[member, 0, :, 0].numpy()
            found = {"return_mean": z.mean(), "return_std": z.std(), "gradient_mean": g.mean(), "gradient_std": g.std()}
            for name, value in found.items():
                exact = float(np.ravel(truth[name])[0])
                allowed = max(mean * abs(exact), absolute) if name.endswith("mean") else spread * exact
                if abs(value - exact) > allowed:
                    wrong.append(
                        f"{name} of critic {member} at {(s, a)} is {value:.3f}, exactly {exact:.3f} ± {allowed:.3f}"
                    )
            together = np.corrcoef(z, g)[0, 1]
            if abs(together - true_correlation) > correlation:
                wrong.append(
                    f"correlation of critic {member} at {(s, a)} is {together:.3f}, truly {true_correlation:.3f}"
                )
    assert not wrong, "\n".join(wrong)


def test_closed_form_agrees_with_simulated_trajectories(problem: LinearQuadratic) -> None:
    s, a = np.array([1.0]), np.array([1.0])
    truth = problem.closed_form(s, a)
    returns, gradients = problem.simulate(s, a, runs=100_000, steps=80, seed=0)
    assert returns.mean() == pytest.approx(truth["return_mean"], abs=0.02)
    assert returns.std() == pytest.approx(truth["return_std"], rel=0.01)
    assert gradients.mean(0) == pytest.approx(truth["gradient_mean"], abs=0.01)
    assert gradients.std(0) == pytest.approx(truth["gradient_std"], rel=0.01)


def test_critic_learns_the_joint_law_with_the_true_simulator_roughly(
    problem: LinearQuadratic, data: Transition
) -> None:
    critic = fitted_critic(problem, data, TrueSimulator(problem), updates=1500, batch=128, samples=10)
    check_law(problem, critic, mean=0.1, absolute=0.1, spread=0.2, correlation=0.1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("simulator", ["true", "cvae"])
def test_critic_learns_the_joint_law(problem: LinearQuadratic, data: Transition, simulator: str) -> None:
    model = TrueSimulator(problem) if simulator == "true" else fitted_vae(data, updates=5000)
    critic = fitted_critic(problem, data, model, updates=8000, batch=256, samples=16)
    check_law(problem, critic, mean=0.05, absolute=0.05, spread=0.1, correlation=0.05)
