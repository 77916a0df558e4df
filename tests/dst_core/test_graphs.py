"""The constant noise of the exported graphs."""

import pytest
import torch

from dst_core.critic import GenerativeCritic, LayerTwoNoiseCritic
from dst_core.graphs import baked_noise
from dst_core.networks import ActionScale, Standardiser


@pytest.fixture
def critic() -> GenerativeCritic:
    action = ActionScale(-torch.ones(2), torch.ones(2))
    return LayerTwoNoiseCritic(observation=Standardiser(3), action=action, hidden=8, noise_size=5, members=2)


def test_baked_noise_is_standardised_over_the_samples_of_each_critic(critic: GenerativeCritic) -> None:
    noise = baked_noise(critic, count=12, seed=0)
    assert noise.shape == (2, 1, 6, 5)
    torch.testing.assert_close(noise.mean(2), torch.zeros(2, 1, 5), rtol=0, atol=1e-6)
    torch.testing.assert_close(noise.square().mean(2), torch.ones(2, 1, 5))


def test_baked_noise_is_that_of_its_seed_and_differs_between_critics(critic: GenerativeCritic) -> None:
    noise = baked_noise(critic, count=12, seed=0)
    assert torch.equal(noise, baked_noise(critic, count=12, seed=0))
    assert not torch.allclose(noise, baked_noise(critic, count=12, seed=1))
    assert not torch.allclose(noise[0], noise[1])


def test_mean_of_a_return_that_is_affine_in_the_noise_is_exact_at_any_count(critic: GenerativeCritic) -> None:
    weight = torch.randn(5, generator=torch.Generator().manual_seed(7))
    for count in (4, 8, 32):
        samples = 3 + baked_noise(critic, count=count, seed=0) @ weight
        torch.testing.assert_close(samples.mean(2), torch.full((2, 1), 3.0), rtol=1e-5, atol=1e-5)
