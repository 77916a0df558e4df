"""The whole critic, end to end, against the exact law of the linear-quadratic-Gaussian problem (method, section 7)."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dst_core.agent_config import BLOCKS, Sobolev
from dst_core.critic import CRITICS, GenerativeCritic, NoiseEntry
from dst_core.critic_learner import CriticLearner
from dst_core.execution import EAGER, Execution, Precision, can_compile
from dst_core.mmd import Estimator
from dst_core.networks import ActionScale, Standardiser, descend
from dst_core.sobolev_loss import Distance
from dst_core.targets import TargetSteps
from dst_core.world_model import StepModel, Transition
from dst_core.world_models.conditional_vae import ConditionalVae
from tests.dst_core.linear_quadratic import LinearActor, LinearQuadratic, TrueSimulator

PROBLEMS = {"one state dimension": LinearQuadratic.scalar(), "two state dimensions": LinearQuadratic.planar()}
WIDTHS = {"one state dimension": 2.0, "two state dimensions": 1.6}  # of the data, a little wider than the points
POINTS = {
    "one state dimension": (([0.0], [0.0]), ([1.0], [1.0]), ([-1.0], [0.5]), ([1.5], [-1.0])),
    "two state dimensions": (([0.0, 0.0], [0.0]), ([1.0, -0.5], [1.0]), ([-1.0, 1.0], [0.5]), ([1.0, 1.0], [-1.0])),
}


def transitions(name: str, *, count: int = 20_000) -> Transition:
    return PROBLEMS[name].transitions(count=count, width=WIDTHS[name], seed=1)


def drawn(data: Transition, batch: int, generator: torch.Generator) -> Transition:
    index = torch.randint(len(data.reward), (batch,), generator=generator)
    return Transition(*(rows[index] for rows in data))


def scales(data: Transition) -> tuple[Standardiser, ActionScale]:
    observation = Standardiser(data.observation.shape[1])
    observation.update(data.observation)
    limit = data.action.abs().amax(0)
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
        losses = model.losses(drawn(data, 256, generator), generator)
        descend(optimiser, torch.stack(list(losses.values())).sum(), max_gradient_norm=10.0)
        schedule.step()
    return model


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What may be chosen of DST without the learned law becoming another."""

    sobolev: Sobolev = "action"
    distance: Distance = "mmd"
    critic_noise: NoiseEntry = "layer-2"
    estimator: Estimator = "unbiased"
    target_steps: TargetSteps = "imagined"


def fitted_critic(
    problem: LinearQuadratic,
    data: Transition,
    model: StepModel,
    choice: Choice,
    *,
    updates: int,
    batch: int,
    samples: int,
    hidden: int = 64,
    execution: Execution = EAGER,
) -> GenerativeCritic:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    observation, action = scales(data)
    kind = CRITICS[choice.critic_noise]
    wide = type(
        kind.__name__, (kind,), {"initial_noise": 1.0}
    )  # these laws are about as wide as the scale of their returns
    critic = wide(observation=observation, action=action, hidden=hidden, noise_size=4, members=1)
    critic.return_scale.fill_(5.0)
    learner = CriticLearner(
        critic,
        discount=problem.discount,
        samples=samples,
        target_steps=choice.target_steps,
        target_law="pooled",
        truncate=0.0,
        blocks=BLOCKS[choice.sobolev],
        distance=choice.distance,
        kernel="multiquadric",
        bandwidth=100.0,
        estimator=choice.estimator,
        gradient_weight=1.0,
        polyak=0.2,
        learning_rate=1e-2,
        max_gradient_norm=10.0,
    )
    learner.prepare(execution)
    schedule = torch.optim.lr_scheduler.LinearLR(learner.optimiser, 1.0, 0.01, total_iters=updates)
    for _ in range(updates):
        learner.step(drawn(data, batch, generator), model=model, actor=LinearActor(problem), generator=generator)
        schedule.step()
    return learner.target_critic


def deviations(
    critic: GenerativeCritic,
    name: str,
    *,
    blocks: tuple[str, ...],
    mean: float,
    absolute: float,
    spread: float,
    correlation: float,
) -> list[str]:
    """Where the law of the return and of the blocks differs from the truth by more than the tolerances, for every critic at every point."""
    problem, wrong = PROBLEMS[name], []
    for s, a in POINTS[name]:
        truth = problem.closed_form(np.array(s), np.array(a))
        simulated = problem.simulate(np.array(s), np.array(a), runs=50_000, steps=80, seed=5)
        true_joint = dict(zip(("return", "action_gradient", "state_gradient"), simulated, strict=True))
        noise = critic.draw_noise(1, 20_000, torch.Generator().manual_seed(7))
        with torch.no_grad():
            joint = critic.joint(torch.tensor([s]), torch.tensor([a]), noise)
        columns = ["return", *(f"{block}_gradient" for block in blocks)]
        true_columns = np.column_stack([true_joint[column] for column in columns])
        exact = {
            moment: np.concatenate([np.ravel(truth[f"{column}_{moment}"]) for column in columns])
            for moment in ("mean", "std")
        }
        by_name = {
            "return": joint.returns.unsqueeze(-1),
            "action_gradient": joint.action_gradient,
            "state_gradient": joint.observation_gradient,
        }
        for member in range(critic.members):
            found = torch.cat([by_name[column][member, 0] for column in columns], -1).numpy()
            checks = {
                "mean": (found.mean(0), exact["mean"], np.maximum(mean * np.abs(exact["mean"]), absolute)),
                "std": (found.std(0), exact["std"], spread * exact["std"]),
                "correlation": (
                    np.corrcoef(found.T) if found.shape[1] > 1 else np.ones(1),
                    np.corrcoef(true_columns.T) if found.shape[1] > 1 else np.ones(1),
                    correlation,
                ),
            }
            for quantity, (value, expected, allowed) in checks.items():
                if (np.abs(value - expected) > allowed).any():
                    wrong.append(
                        f"{quantity} of {columns} of critic {member} at {(s, a)}: {np.round(value, 3).tolist()}, "
                        f"truly {np.round(expected, 3).tolist()} ± {np.round(allowed, 3).tolist()}"
                    )
    return wrong


def test_closed_form_agrees_with_simulated_trajectories() -> None:
    for name, problem in PROBLEMS.items():
        s, a = (np.array(part) for part in POINTS[name][1])
        truth = problem.closed_form(s, a)
        simulated = problem.simulate(s, a, runs=100_000, steps=80, seed=0)
        for column, samples in zip(("return", "action_gradient", "state_gradient"), simulated, strict=True):
            assert samples.mean(0) == pytest.approx(truth[f"{column}_mean"], abs=0.02), (name, column)
            assert samples.std(0) == pytest.approx(truth[f"{column}_std"], rel=0.01), (name, column)


ROUGH = {"mean": 0.1, "absolute": 0.1, "spread": 0.2, "correlation": 0.1}
STRICT = {"mean": 0.05, "absolute": 0.05, "spread": 0.1, "correlation": 0.05}


def test_critic_learns_the_joint_law_with_the_true_simulator_roughly() -> None:
    name = "one state dimension"
    problem = PROBLEMS[name]
    simulator = TrueSimulator(problem)
    critic = fitted_critic(problem, transitions(name), simulator, Choice(), updates=1500, batch=128, samples=10)
    wrong = deviations(critic, name, blocks=("action",), **ROUGH)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler: torch.compile has nothing to call")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_compiled_critic_learns_the_joint_law_as_roughly(precision: Precision) -> None:
    name = "one state dimension"
    problem = PROBLEMS[name]
    execution = Execution(compiled=True, precision=precision)
    critic = fitted_critic(
        problem,
        transitions(name),
        TrueSimulator(problem),
        Choice(),
        updates=1500,
        batch=128,
        samples=10,
        execution=execution,
    )
    wrong = deviations(critic, name, blocks=("action",), **ROUGH)
    assert not wrong, "\n".join(wrong)


def test_biased_estimator_learns_too_narrow_a_law() -> None:
    """The same test fails with the V-statistic, at every point, by the spread."""
    name = "one state dimension"
    problem = PROBLEMS[name]
    choice = Choice(estimator="biased")
    simulator = TrueSimulator(problem)
    critic = fitted_critic(problem, transitions(name), simulator, choice, updates=1500, batch=128, samples=10)
    spreads = [line for line in deviations(critic, name, blocks=("action",), **ROUGH) if line.startswith("std")]
    assert len(spreads) == len(POINTS[name]), spreads
    for s, a in POINTS[name]:
        joint = critic.joint(torch.tensor([s]), torch.tensor([a]), critic.draw_noise(1, 5000))
        truth = problem.closed_form(np.array(s), np.array(a))
        assert float(joint.returns.detach().std()) < 0.8 * float(truth["return_std"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("steps", "count", "tolerances"), [("imagined", 20_000, STRICT), ("replayed", 100_000, ROUGH)])
def test_critic_learns_the_joint_law_through_a_fitted_world_model(
    steps: TargetSteps, count: int, tolerances: dict[str, float]
) -> None:
    """Replayed steps learn with more noise: a transition shows one step of its law, where a model shows what all of them have in common."""
    name = "one state dimension"
    data = transitions(name, count=count)
    model = fitted_vae(data, updates=5000)
    choice = Choice(target_steps=steps)
    critic = fitted_critic(PROBLEMS[name], data, model, choice, updates=4000, batch=128, samples=40, hidden=128)
    wrong = deviations(critic, name, blocks=("action",), **tolerances)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("critic_noise", CRITICS)
@pytest.mark.parametrize("distance", ["mmd", "max-sliced-mmd"])
@pytest.mark.parametrize("sobolev", BLOCKS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_choice_learns_the_joint_law_with_the_true_simulator(
    name: str, sobolev: Sobolev, distance: Distance, critic_noise: NoiseEntry
) -> None:
    problem = PROBLEMS[name]
    critic = fitted_critic(
        problem,
        transitions(name),
        TrueSimulator(problem),
        Choice(sobolev=sobolev, distance=distance, critic_noise=critic_noise),
        updates=4000,
        batch=128,
        samples=40,
        hidden=128,
        execution=Execution(compiled=can_compile(torch.device("cpu"))),
    )
    wrong = deviations(critic, name, blocks=BLOCKS[sobolev], **STRICT)
    assert not wrong, "\n".join(wrong)
