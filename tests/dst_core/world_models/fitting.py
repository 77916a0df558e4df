"""Small problems whose law is known, and learned world models fitted to them."""

import functools

import torch

from dst_core.networks import ActionScale, Standardiser, descend
from dst_core.world_model import LearnedModel, Transition
from dst_core.world_models.conditional_vae import ConditionalVae
from dst_core.world_models.gaussian_ensemble import GaussianEnsemble
from dst_core.world_models.normalising_flow import NormalisingFlow
from tests.dst_core.linear_quadratic import LinearQuadratic

MODELS = {
    "cvae": functools.partial(ConditionalVae, latent=2),
    "ensemble": GaussianEnsemble,
    "flow": NormalisingFlow,
}
UPDATES = {"cvae": 700, "ensemble": 300, "flow": 300}
DYNAMICS_STD, REWARD_STD = 0.3, 0.2  # of the linear-quadratic problem


def bimodal(count: int, seed: int) -> Transition:
    """s' = s + a + w with w = ±0.5 + 0.1 noise, r = 2 s; ends where s' > 1."""
    generator = torch.Generator().manual_seed(seed)
    s = 2 * torch.rand(count, 1, generator=generator) - 1
    a = 2 * torch.rand(count, 1, generator=generator) - 1
    side = 2.0 * torch.randint(2, (count, 1), generator=generator) - 1
    following = s + a + 0.5 * side + 0.1 * torch.randn(count, 1, generator=generator)
    return Transition(s, a, 2 * s[:, 0], following, (following[:, 0] > 1).float())


def linear_quadratic(count: int, seed: int) -> Transition:
    """The linear-quadratic problem, its reward with noise so that it has a density."""
    data = LinearQuadratic.scalar().transitions(count=count, width=2.0, seed=seed)
    noise = torch.randn(count, generator=torch.Generator().manual_seed(seed))
    return data._replace(reward=data.reward + REWARD_STD * noise)


def build(name: str, data: Transition) -> LearnedModel:
    torch.manual_seed(0)
    observation = Standardiser(data.observation.shape[1])
    observation.update(data.observation)
    limit = data.action.abs().amax(0)
    model = MODELS[name](observation=observation, action=ActionScale(-limit, limit), hidden=32)
    model.observe(data)
    return model


def fit(model: LearnedModel, data: Transition, *, updates: int, learning_rate: float = 1e-2) -> None:
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, start_factor=1.0, end_factor=0.05, total_iters=updates)
    for _ in range(updates):
        index = torch.randint(len(data.reward), (128,), generator=generator)
        losses = model.losses(Transition(*(rows[index] for rows in data)), generator)
        descend(optimiser, torch.stack(list(losses.values())).sum(), max_gradient_norm=10.0)
        schedule.step()


@functools.cache
def fitted_to_linear_quadratic(name: str) -> LearnedModel:
    """Not to be changed by a test."""
    data = linear_quadratic(5000, 0)
    model = build(name, data)
    fit(model, data, updates=UPDATES[name])
    return model
