import numpy as np
import pytest
import torch
from gymnasium.utils.seeding import np_random

from dst_core.world_models.point_mass import PointMassSimulator, simulator_of, true_joint_samples
from sim_bridge.tasks import TaskError, make_task
from sim_bridge.tasks.point_mass import next_position, reward
from tests.dst_core.nearest_location import NearestLocation


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return observation, 2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1


def joint(observation, action, *, locations=2, discount=0.9, samples=8, seed=0, actor=None):
    model = PointMassSimulator(locations=locations)
    return true_joint_samples(
        observation,
        action,
        model=model,
        actor=actor or NearestLocation(model.positions),
        discount=discount,
        samples=samples,
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("environment", ["PointMass-v0", "PointMass1-v0", "PointMass8-v0"])
def test_step_is_that_of_the_environment_along_the_same_noise(environment):
    env = make_task(environment, perturbations=["dropout=0"])
    model = simulator_of(env)
    noise, _ = np_random(11)
    observation, _ = env.reset(seed=11)
    noise.standard_normal(2)  # of the start
    for action in np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32):
        given = (torch.as_tensor(value, dtype=torch.float64)[None] for value in (observation, action))
        draw = model.step(*given, torch.from_numpy(noise.standard_normal(2))[None])
        observation, gained, *_ = env.step(action)
        np.testing.assert_allclose(draw.next_observation[0], observation, rtol=0, atol=1e-12)
        np.testing.assert_allclose(draw.reward[0], gained, rtol=0, atol=1e-12)
        assert draw.termination[0] == 0


def test_step_has_exact_first_and_second_derivatives():
    model = PointMassSimulator(locations=4)
    inputs = tuple(value.requires_grad_() for value in rows(5))
    noise = rows(5, seed=1)[0]

    def step(observation, action):
        return model.step(observation, action, noise)[:2]

    assert torch.autograd.gradcheck(step, inputs)
    assert torch.autograd.gradgradcheck(step, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_have_the_motion_noise_and_the_precision_asked(dtype):
    observation, action = (value.to(dtype).expand(4000, -1) for value in rows(1))
    model = PointMassSimulator(locations=2)
    first, again, other = (model.sample(observation, action, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.next_observation.dtype == first.reward.dtype == first.termination.dtype == dtype
    noise = first.next_observation - observation - 0.1 * action
    np.testing.assert_allclose(noise.T.cov(), 0.05**2 * np.eye(2), atol=0.15e-3)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first.next_observation, other.next_observation)


@pytest.mark.parametrize("locations", [1, 2, 4, 8])
def test_rewards_stay_within_the_stated_range(locations):
    model = PointMassSimulator(locations=locations)
    low, high = model.reward_range
    axis = torch.linspace(-1.5, 1.5, 101, dtype=torch.float64)
    plane = torch.cartesian_prod(axis, axis)
    still, fast = (model.step(plane, torch.full_like(plane, speed), torch.zeros_like(plane)).reward for speed in (0, 1))
    assert still.max() <= high
    assert still.max() >= 0.99
    assert low <= fast.min() <= low + 1e-3
    assert low.shape == high.shape == ()


def test_return_is_the_discounted_sum_of_the_environments_rewards():
    observation, action = rows(3)
    got = joint(observation, action, samples=4, locations=4, seed=5).returns
    model = PointMassSimulator(locations=4)
    actor = NearestLocation(model.positions)
    generator = torch.Generator().manual_seed(5)
    state, command = (value.repeat_interleave(4, 0).numpy() for value in (observation, action))
    total = np.zeros(12)
    for t in range(250):
        noise = torch.randn(12, 2, generator=generator, dtype=torch.float64).numpy()
        state = next_position(state, command, noise)
        total += 0.9**t * reward(state, command, model.positions.numpy(), model.worths.numpy())
        command = actor(torch.from_numpy(state)).numpy()
    np.testing.assert_allclose(got, total.reshape(3, 4), rtol=0, atol=1e-6 / (1 - 0.9))


def test_gradient_samples_are_the_finite_differences_along_the_same_noise():
    observation, action = rows(4)
    sample = joint(observation, action)
    for axis in range(2):
        step = torch.zeros(2, dtype=torch.float64)
        step[axis] = 1e-5
        for gradients, change in (
            (sample.action_gradients, lambda sign, d=step: joint(observation, action + sign * d).returns),
            (sample.state_gradients, lambda sign, d=step: joint(observation + sign * d, action).returns),
        ):
            torch.testing.assert_close(gradients[..., axis], (change(1) - change(-1)) / 2e-5, rtol=1e-5, atol=1e-6)
    assert sample.returns.shape == (4, 8)
    assert sample.action_gradients.std(1).min() > 1e-3


def test_action_gradient_is_the_cost_and_a_tenth_of_the_state_gradient():
    """By the chain rule, as the first step moves by 0.1 s times the action: dZ/da = 0.1 dZ/ds - 2 cost a."""
    observation, action = rows(6)
    sample = joint(observation, action, locations=8)
    expected = 0.1 * sample.state_gradients - 0.02 * action[:, None]
    torch.testing.assert_close(sample.action_gradients, expected, rtol=1e-9, atol=1e-12)


def test_undiscounted_future_counts_for_nothing_at_discount_0():
    observation, action = rows(2)
    got = joint(observation, action, discount=0.0).returns
    model = PointMassSimulator(locations=2)
    copies = (value.repeat_interleave(8, 0) for value in (observation, action))
    torch.testing.assert_close(got.flatten(), model.sample(*copies, torch.Generator().manual_seed(0)).reward)


def shares(returns):
    """Shares of samples in the lowest quarter, middle half and highest quarter between the 10 % and 90 % quantiles."""
    low, high = np.quantile(returns, [0.1, 0.9])
    lower, upper = low + 0.25 * (high - low), high - 0.25 * (high - low)
    return (returns < lower).mean(), ((returns >= lower) & (returns <= upper)).mean(), (returns > upper).mean()


def test_return_from_the_middle_has_as_many_modes_as_there_are_locations_one_or_two():
    """A normal law has 48 % of its samples in the middle half of that span, two far modes next to none."""
    middle, at_rest = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    two = joint(middle, at_rest, locations=2, discount=0.95, samples=1500).returns[0].numpy()
    one = joint(middle, at_rest, locations=1, discount=0.95, samples=1500).returns[0].numpy()
    low, between, high = shares(two)
    assert between < 0.1
    assert min(low, high) > 0.4
    low, between, high = shares(one)
    assert between > 0.4
    assert max(low, high) < 0.35


@pytest.mark.parametrize("discount", [1.0, -0.1, float("nan")])
def test_roll_out_that_would_not_end_is_refused(discount):
    with pytest.raises(ValueError, match=r"discount must lie in \[0, 1\)"):
        joint(*rows(1), discount=discount)


def test_simulator_of_another_task_is_refused():
    for env, name in ((make_task("Pendulum-v1"), "'Pendulum-v1'"), (None, "None")):
        with pytest.raises(TaskError, match=f"known simulator.* got {name}"):
            simulator_of(env)
    with pytest.raises(TaskError, match="at least 1, got 0"):
        PointMassSimulator(locations=0)


def test_simulator_of_a_perturbed_task_is_refused():
    for perturbations in (["actuation=0.1"], ["delay=2", "dropout=0"]):
        with pytest.raises(TaskError, match=r"without perturbations, got (actuation=0.1|delay=2)"):
            simulator_of(make_task("PointMass2-v0", perturbations=perturbations))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_simulator_computes_where_the_observation_is():
    model = PointMassSimulator(locations=2).cuda()
    observation, action = (value.cuda().float() for value in rows(3))
    on_device = model.step(observation, action, torch.zeros_like(action))
    on_cpu = PointMassSimulator(locations=2).step(*rows(3), torch.zeros(3, 2, dtype=torch.float64))
    torch.testing.assert_close(on_device.reward.cpu().double(), on_cpu.reward, rtol=1e-5, atol=1e-6)
