"""Learners on the scalar linear-quadratic problem, whose mean return, spread and mean gradient are known."""

from collections.abc import Callable
from dataclasses import replace
from math import erfc

import numpy as np
import torch
from torch import Tensor

from dst_core.baselines.q_network import QNetwork
from dst_core.baselines.replay_learner import ReplayLearner
from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import Transition
from tests.dst_core.linear_quadratic import LinearActor, LinearQuadratic, TrueSimulator

WIDTH = 2.5
POINTS = ((0.0, 0.0), (1.0, 1.0), (-1.0, 0.5), (1.5, -1.0))
PROBLEM = replace(LinearQuadratic.scalar(), discount=0.5)  # errors of one backup grow to no more than twice their size
DATA = PROBLEM.transitions(count=20_000, width=WIDTH, seed=1)


def scales() -> tuple[Standardiser, ActionScale]:
    observation = Standardiser(1)
    observation.update(DATA.observation)
    return observation, ActionScale(torch.tensor([-WIDTH]), torch.tensor([WIDTH]))


def networks() -> dict[str, object]:
    observation, action = scales()
    return {"observation": observation, "action": action, "hidden": 64}


def temporal_difference(*, learning_rate: float = 1e-2) -> dict[str, float]:
    return {"discount": PROBLEM.discount, "polyak": 0.2, "learning_rate": learning_rate, "max_gradient_norm": 10.0}


def transitions(count: int, *, terminated: float = 0.0) -> Transition:
    """The first rows of the data, ended or not."""
    first = Transition(*(rows[:count] for rows in DATA))
    return first._replace(terminated=torch.full((count,), terminated))


def fit(make: Callable[[], ReplayLearner], *, updates: int) -> ReplayLearner:
    """The learner after its updates with a step size that falls to nothing, its critic replaced by the smoother target critic."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    learner = make()
    learner.critic.return_scale.fill_(2.0)
    schedule = torch.optim.lr_scheduler.LinearLR(learner.optimiser, 1.0, 0.02, total_iters=updates)
    simulator, actor = TrueSimulator(PROBLEM), LinearActor(PROBLEM)
    for _ in range(updates):
        index = torch.randint(len(DATA.reward), (128,), generator=generator)
        batch = Transition(*(rows[index] for rows in DATA))
        learner.step(batch, model=simulator, actor=actor, generator=generator)
        schedule.step()
    learner.critic.load_state_dict(learner.target_critic.state_dict())
    return learner


def learned(learner: ReplayLearner) -> dict[str, np.ndarray]:
    """Mean and spread of the return and mean action gradient at the four points."""
    generator = torch.Generator().manual_seed(2)
    rows = []
    for s, a in POINTS:
        observation, action = torch.full((500, 1), s), torch.full((500, 1), a, requires_grad=True)
        returns = learner.returns(observation, action, generator)
        (gradient,) = torch.autograd.grad(returns.mean((0, 2)).sum(), action)
        samples = returns[0].detach().flatten()
        rows.append((returns.mean().item(), samples.std().item(), gradient.mean().item()))
    return dict(zip(("mean", "std", "gradient"), np.array(rows).T, strict=True))


def exact(*, smoothing_variance: float = 0.0) -> dict[str, np.ndarray]:
    """The same in closed form; target policy smoothing adds noise of the variance given to every action but the first.

    With value V(s) = -P s^2 - c of the smoothed policy, c = [R v + discount P (Sigma + B^2 v)] / (1 - discount): v adds to the mean.
    """
    rows = []
    for s, a in POINTS:
        truth = PROBLEM.closed_form(np.array([s]), np.array([a]))
        rows.append([np.ravel(truth[name])[0] for name in ("return_mean", "return_std", "action_gradient_mean")])
    g, M = PROBLEM.discount, PROBLEM.A - PROBLEM.B * PROBLEM.K
    P = (PROBLEM.Q + PROBLEM.K**2 * PROBLEM.R) / (1 - g * M**2)
    added = (PROBLEM.R + g * P * PROBLEM.B**2).item() * smoothing_variance * g / (1 - g)
    mean, std, gradient = np.array(rows).T
    return {"mean": mean - added, "std": std, "gradient": gradient}


@torch.no_grad()
def cross_twins(twins: QNetwork, observation: Tensor, action: Tensor) -> None:
    """Shift the second twin until each is the lesser one at half of the points."""
    first, second = twins(observation, action)
    twins.layers[-1].bias[1] += (first - second).median()


def clipped_normal_variance(std: float, clip: float) -> float:
    """Of normal noise clipped at `clip`: std^2 [1 - 2 c phi(c) - 2 Q(c) + 2 c^2 Q(c)] with c = clip / std."""
    c = clip / std
    density, tail = np.exp(-0.5 * c**2) / np.sqrt(2 * np.pi), 0.5 * erfc(c / np.sqrt(2))
    return float(std**2 * (1 - 2 * c * density - 2 * tail + 2 * c**2 * tail))


class StillActor(torch.nn.Module):
    """Always the action at the middle of the range."""

    def forward(self, observation: Tensor) -> Tensor:
        return torch.zeros(*observation.shape[:-1], 1)
