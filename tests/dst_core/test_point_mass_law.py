"""The learned joint law on the point mass against true samples: bimodal returns, and gradients that depend on the side taken."""

import pytest
import torch
from torch import Tensor

from dst_core.critic import LayerTwoNoiseCritic
from dst_core.critic_learner import CriticLearner
from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import Transition
from dst_core.world_models.point_mass import PointMassSimulator, true_joint_samples
from tests.dst_core.nearest_location import NearestLocation

DISCOUNT = 0.9
POINTS = 32
REACH_M = 1.2  # of the test points; training data goes a little further


def fitted_critic(simulator: PointMassSimulator, policy: NearestLocation, *, updates: int) -> LayerTwoNoiseCritic:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    observations = 1.4 * (2 * torch.rand(20_000, 2, generator=generator) - 1)
    actions = 2 * torch.rand(20_000, 2, generator=generator) - 1
    observation = Standardiser(2)
    observation.update(observations)
    critic = LayerTwoNoiseCritic(
        observation=observation,
        action=ActionScale(-torch.ones(2), torch.ones(2)),
        hidden=128,
        noise_size=4,
        members=1,
    )
    critic.return_scale.fill_(5.0)
    learner = CriticLearner(
        critic,
        discount=DISCOUNT,
        samples=40,
        target_steps="replayed",
        target_law="pooled",
        truncate=0.0,
        blocks=("action",),
        distance="mmd",
        kernel="multiquadric",
        bandwidth=100.0,
        estimator="unbiased",
        gradient_weight=1.0,
        polyak=0.05,
        learning_rate=5e-3,
        max_gradient_norm=10.0,
    )
    schedule = torch.optim.lr_scheduler.LinearLR(learner.optimiser, 1.0, 0.01, total_iters=updates)
    for _ in range(updates):
        rows = torch.randint(len(observations), (128,), generator=generator)
        batch = Transition(observations[rows], actions[rows], torch.zeros(128), observations[rows], torch.zeros(128))
        learner.step(batch, model=simulator, actor=policy, generator=generator)
        schedule.step()
    return learner.target_critic


def energy_score(samples: Tensor, observations: Tensor) -> float:
    """E|X - y| - E|X - X'| / 2 of samples (N, D), averaged over observations (M, D) (Gneiting and Raftery, JASA 2007)."""
    within = torch.cdist(samples, samples).sum() / (len(samples) * (len(samples) - 1))
    return float(torch.cdist(samples, observations).mean() - within / 2)


def relative_score(simulator: PointMassSimulator, policy: NearestLocation, critic: LayerTwoNoiseCritic) -> float:
    """Mean energy score of learned samples of [Z; dZ/da], standardised over all, over that of as many true ones."""
    place = torch.Generator().manual_seed(3)
    observations = REACH_M * (2 * torch.rand(POINTS, 2, generator=place) - 1)
    actions = 2 * torch.rand(POINTS, 2, generator=place) - 1
    count = 500

    def truth(samples: int, seed: int) -> Tensor:
        drawn = true_joint_samples(
            observations,
            actions,
            model=simulator,
            actor=policy,
            discount=DISCOUNT,
            samples=samples,
            generator=torch.Generator().manual_seed(seed),
        )
        return torch.cat([drawn.returns.unsqueeze(-1), drawn.action_gradients], -1)

    seen, equal = truth(1000, 0), truth(count, 1)
    noise = critic.draw_noise(POINTS, count, torch.Generator().manual_seed(2))
    with torch.no_grad():
        joint = critic.joint(observations, actions, noise)
    learned = torch.cat([joint.returns[0].unsqueeze(-1), joint.action_gradient[0]], -1)
    scale = seen.flatten(0, 1).std(0)
    scores = [
        sum(energy_score(mine, theirs) for mine, theirs in zip(samples / scale, seen / scale, strict=True))
        for samples in (learned, equal)
    ]
    return scores[0] / scores[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("locations", [1, 2])
def test_learned_joint_samples_score_within_a_tenth_of_true_ones(locations: int) -> None:
    simulator = PointMassSimulator(locations=locations)
    policy = NearestLocation(simulator.positions)
    critic = fitted_critic(simulator, policy, updates=4000)
    assert relative_score(simulator, policy, critic) < 1.1
