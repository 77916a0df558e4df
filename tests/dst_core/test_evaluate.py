"""Evaluation: fixed seeds, deterministic actions, and how far critic and world model agree with the episodes."""

import statistics

import numpy as np
import pytest
import torch
from torch import Tensor

from dst_core.config import MAX_SEED
from dst_core.critic_bias import MOST_BOOTSTRAPPED, critic_bias
from dst_core.episode import EPISODES_PER_SEED, episode_seed
from dst_core.evaluate import Evaluation, Trajectory, evaluate, evaluation_seeds
from dst_core.model_quality import held_out, mean_jacobian, model_quality
from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import LearnedModel, ModelDraw, Transition
from dst_core.world_models.choice import known_step
from sim_bridge.tasks import make_task


def trajectory(rewards: list[float], *, terminated: bool, first: float = 0.0) -> Trajectory:
    """States count the steps from `first` on."""
    count = len(rewards) + 1
    return Trajectory(
        observations=np.arange(first, first + count, dtype=np.float32)[:, None],
        actions=np.full((count, 1), 0.5, np.float32),
        rewards=tuple(rewards),
        terminated=terminated,
    )


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def half_of_the_observation(observation: Tensor, action: Tensor, _: torch.Generator) -> Tensor:
    """Two critics of three samples whose mean is half the observation plus the action."""
    spread = torch.tensor([[-2.0, 0.0, 1.0], [-1.0, 2.0, 0.0]])[:, None]
    return (0.5 * observation + action)[None] + spread


def test_evaluation_seeds_are_the_same_for_every_run_and_never_those_of_training() -> None:
    assert evaluation_seeds(3) == evaluation_seeds(5)[:3]
    assert episode_seed(MAX_SEED, EPISODES_PER_SEED - 1) < min(evaluation_seeds(1))
    assert episode_seed(4, EPISODES_PER_SEED) == episode_seed(5, 0)


def test_trajectories_are_what_a_plain_loop_sees() -> None:
    def policy(observation: np.ndarray) -> np.ndarray:
        return np.array([-3.0 * observation[1]], np.float32)

    seeds = (7, 8)
    result = evaluate(policy, environment="InvertedPendulum-v5", perturbations=("actuation=0.1",), seeds=seeds)
    env = make_task("InvertedPendulum-v5", perturbations=("actuation=0.1",))
    for seed, seen in zip(seeds, result.trajectories, strict=True):
        observation, _ = env.reset(seed=seed)
        for step, reward in enumerate(seen.rewards):
            assert np.array_equal(seen.observations[step], observation.astype(np.float32))
            assert np.array_equal(seen.actions[step], policy(seen.observations[step]))
            observation, its_reward, terminated, truncated, _ = env.step(seen.actions[step])
            assert its_reward == reward
            assert (terminated or truncated) == (step == len(seen.rewards) - 1)
        assert np.array_equal(seen.observations[-1], observation.astype(np.float32))
        assert seen.terminated == terminated
    env.close()


def test_summary_of_returns() -> None:
    rewards = [[1.0, 2.0], [10.0], [0.0, 0.0, 2.0], [4.0]]
    result = Evaluation(seeds=(0, 1, 2, 3), trajectories=tuple(trajectory(row, terminated=True) for row in rewards))
    assert result.returns == (3.0, 10.0, 2.0, 4.0)
    assert result.summary() == {
        "return_mean": 4.75,
        "return_std": pytest.approx(statistics.pstdev([3, 10, 2, 4])),
        "return_median": 3.5,
        "return_min": 2.0,
        "length_mean": 1.75,
    }


def test_bias_of_a_terminated_episode_is_its_discounted_return_less_the_predicted_mean() -> None:
    bias = critic_bias(
        [trajectory([1.0, 2.0, 4.0], terminated=True)],
        returns=half_of_the_observation,
        discount=0.5,
        generator=generator(),
    )
    assert bias is not None
    differences = [(1 + 1 + 1) - 0.5, (2 + 2) - 1.0, 4 - 1.5]
    assert bias.mean == pytest.approx(statistics.fmean(differences))
    assert bias.std == pytest.approx(statistics.pstdev(differences))


def test_time_limit_bootstraps_and_only_states_far_from_it_count() -> None:
    steps, discount = 40, 0.9
    rewards = [float(step % 3) for step in range(steps)]
    bias = critic_bias(
        [trajectory(rewards, terminated=False)],
        returns=half_of_the_observation,
        discount=discount,
        generator=generator(),
    )
    differences = []
    for start in range(steps):
        left = steps - start
        whole = sum(discount**ahead * rewards[start + ahead] for ahead in range(left))
        whole += discount**left * (0.5 * steps + 0.5)
        if discount**left <= 0.2:
            differences.append(whole - (0.5 * start + 0.5))
    assert 0 < len(differences) < steps
    assert MOST_BOOTSTRAPPED == 0.2
    assert bias is not None
    assert bias.mean == pytest.approx(statistics.fmean(differences), rel=1e-6)


def test_episodes_that_a_time_limit_cuts_short_give_no_bias() -> None:
    short = [trajectory([1.0] * 5, terminated=False)]
    assert critic_bias(short, returns=half_of_the_observation, discount=0.9, generator=generator()) is None
    both = [*short, trajectory([1.0], terminated=True)]
    bias = critic_bias(both, returns=half_of_the_observation, discount=0.9, generator=generator())
    assert bias is not None
    assert bias.mean == pytest.approx(0.5)


def test_critic_that_knows_the_return_has_no_bias() -> None:
    """Reward 1 for ever is worth 1 / (1 - discount), whether a time limit ends it or not."""

    def worth(observation: Tensor, action: Tensor, _: torch.Generator) -> Tensor:
        return torch.full((2, len(observation), 1), 10.0)

    long = [trajectory([1.0] * 2000, terminated=False)]
    bias = critic_bias(long, returns=worth, discount=0.9, generator=generator())
    assert bias is not None
    assert bias.mean == pytest.approx(0, abs=1e-4)
    assert bias.std == pytest.approx(0, abs=1e-4)


def test_coverage_is_the_share_of_returns_between_the_quantiles_of_the_samples() -> None:
    """With 19 samples the central 90 % interval reaches from the least to the greatest of them."""
    rewards = [0.0] * 9 + [1.0] * 11

    def about_zero(observation: Tensor, action: Tensor, _: torch.Generator) -> Tensor:
        return torch.linspace(-0.5, 0.5, 19).expand(1, len(observation), 19)

    bias = critic_bias([trajectory(rewards, terminated=True)], returns=about_zero, discount=0.5, generator=generator())
    realised = [sum(0.5**ahead * reward for ahead, reward in enumerate(rewards[start:])) for start in range(20)]
    assert bias is not None
    assert bias.coverage == statistics.fmean(-0.5 <= value <= 0.5 for value in realised)
    assert 0 < bias.coverage < 1


@pytest.mark.parametrize("samples", [19, 39, 99])
def test_interval_of_few_samples_of_the_true_law_holds_nine_tenths(samples: int) -> None:
    def noise(observation: Tensor, action: Tensor, source: torch.Generator) -> Tensor:
        return torch.randn(1, len(observation), samples, generator=source)

    rewards = np.random.default_rng(0).standard_normal(20_000).tolist()
    bias = critic_bias([trajectory(rewards, terminated=True)], returns=noise, discount=1e-9, generator=generator())
    assert bias is not None
    assert bias.coverage == pytest.approx(0.9, abs=0.008)


class LinearGaussian(LearnedModel):
    """s' ~ N(s + gain a, noise^2), r ~ N(0, noise^2) for one observation and one action, in standardised units that are the user's."""

    def __init__(self, *, gain: float, noise: float) -> None:
        action = ActionScale(-torch.ones(1), torch.ones(1))
        super().__init__(observation=Standardiser(1), action=action, hidden=4)
        self.gain, self.noise = gain, noise

    def draw(self, given: Tensor, generator: torch.Generator | None) -> Tensor:
        noise = self.noise * torch.randn(len(given), 2, generator=generator)
        return torch.stack([self.gain * given[:, 1], torch.zeros(len(given))], -1) + noise

    def redraw(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError("no step is replayed here")

    def log_density(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:
        mean = torch.stack([self.gain * given[:, 1], torch.zeros(len(given))], -1)
        return torch.distributions.Normal(mean, self.noise).log_prob(outcome).sum(-1)


def linear_data(rows: int, *, gain: float, noise: float) -> Transition:
    source = generator()
    observation = torch.randn(rows, 1, generator=source)
    action = torch.rand(rows, 1, generator=source) * 2 - 1
    change = gain * action + noise * torch.randn(rows, 1, generator=source)
    reward = noise * torch.randn(rows, generator=source)
    return Transition(observation, action, reward, observation + change, torch.zeros(rows))


def test_true_model_has_the_errors_of_its_noise_and_the_likelihood_of_its_density() -> None:
    gain, noise, rows = 2.0, 0.5, 20_000
    data = linear_data(rows, gain=gain, noise=noise)
    model = LinearGaussian(gain=gain, noise=noise)
    quality = model_quality(model, data, generator=generator(), truth=lambda state, action: state + gain * action)
    of_16_draws = noise**2 * (1 + 1 / 16)
    std_of_change = (gain**2 / 3 + noise**2) ** 0.5
    entropy = 2 * (0.5 + 0.5 * np.log(2 * np.pi * noise**2))
    assert quality["model_observation_error"] == pytest.approx(of_16_draws**0.5 / std_of_change, rel=0.02)
    assert quality["model_reward_error"] == pytest.approx(of_16_draws**0.5, rel=0.02)
    assert quality["model_log_likelihood"] == pytest.approx(-entropy, rel=0.02)
    assert quality["model_gradient_error"] == 0


def test_model_that_knows_half_the_gradient_has_half_its_error_and_one_that_knows_none_all_of_it() -> None:
    data = linear_data(100, gain=2.0, noise=0.1)

    def truth(observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return observation + 2.0 * action

    for gain, error in ((1.0, 0.5), (0.0, 1.0), (-2.0, 2.0)):
        quality = model_quality(LinearGaussian(gain=gain, noise=0.1), data, generator=generator(), truth=truth)
        assert quality["model_gradient_error"] == pytest.approx(error)


def test_components_that_never_change_do_not_count() -> None:
    data = linear_data(500, gain=2.0, noise=0.1)
    data = data._replace(next_observation=data.next_observation + 5.0)  # a mean change is no spread
    still = data._replace(observation=torch.zeros(500, 1), next_observation=torch.zeros(500, 1))
    both = Transition(
        torch.cat([data.observation, still.observation], -1),
        data.action,
        data.reward,
        torch.cat([data.next_observation, still.next_observation], -1),
        data.terminated,
    )

    class Both(LearnedModel):
        def __init__(self) -> None:
            super().__init__(observation=Standardiser(2), action=ActionScale(-torch.ones(1), torch.ones(1)), hidden=4)

        def draw(self, given: Tensor, generator: torch.Generator | None) -> Tensor:
            return torch.stack([2.0 * given[:, 2], torch.full((len(given),), 9.0), torch.zeros(len(given))], -1)

        def redraw(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:
            raise NotImplementedError("no step is replayed here")

        def log_density(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:
            return torch.zeros(len(given))

    change = data.next_observation - data.observation
    error = (change - 2.0 * data.action).square().mean().sqrt() / change.std(correction=0)
    quality = model_quality(Both(), both, generator=generator())
    assert quality["model_observation_error"] == pytest.approx(float(error), rel=1e-4)


def test_mean_jacobian_agrees_with_finite_differences() -> None:
    class Turning:
        reward_range = (torch.tensor(-1.0), torch.tensor(1.0))

        def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
            turned = observation + torch.stack([action[:, 0].sin() * action[:, 1], action[:, 1].square()], -1)
            return ModelDraw(turned, turned[:, 0], turned[:, 0])

    source = torch.Generator().manual_seed(1)
    observation, action = (torch.randn(5, 2, generator=source, dtype=torch.float64) for _ in range(2))
    rows = Transition(observation, action, action[:, 0], observation, action[:, 0])
    jacobian = mean_jacobian(Turning(), rows, generator())
    for index in range(2):
        step = 1e-6 * torch.eye(2, dtype=torch.float64)[index]
        up, down = (Turning().sample(observation, action + sign * step).next_observation for sign in (1, -1))
        torch.testing.assert_close(jacobian[:, :, index], (up - down) / 2e-6, rtol=1e-6, atol=1e-8)


def test_held_out_rows_are_the_transitions_of_the_episodes() -> None:
    episodes = [trajectory([1.0, 2.0], terminated=True), trajectory([3.0, 4.0, 5.0], terminated=False, first=10.0)]
    rows = held_out(episodes, torch.device("cpu"))
    assert rows.observation.flatten().tolist() == [0, 1, 10, 11, 12]
    assert rows.next_observation.flatten().tolist() == [1, 2, 11, 12, 13]
    assert rows.reward.tolist() == [1, 2, 3, 4, 5]
    assert rows.terminated.tolist() == [0, 1, 0, 0, 0]
    assert len(held_out([trajectory([1.0] * 5000, terminated=False)], torch.device("cpu")).reward) == 1024


def test_known_step_of_a_task_is_its_own_without_noise() -> None:
    env = make_task("InvertedPendulum-v5", perturbations=("actuation=0.1",))
    state, action = torch.zeros(2, 4), torch.tensor([[-1.0], [1.0]])
    following = known_step(env)(state, action)
    assert float(following[0, 2]) < 0 < float(following[1, 2])
    env.close()
    point = known_step(make_task("PointMass2-v0"))
    torch.testing.assert_close(point(torch.zeros(1, 2), torch.tensor([[1.0, -0.5]])), torch.tensor([[0.1, -0.05]]))
    assert known_step(make_task("Pendulum-v1")) is None


@pytest.mark.parametrize(
    ("perturbation", "environments"),
    [
        *(
            (sensor, ("InvertedPendulum-v5", "PointMass2-v0"))
            for sensor in ("delay=1", "dropout=0.5", "observation=0.2")
        ),
        *((robot, ("InvertedPendulum-v5",)) for robot in ("mass=0.3", "gravity=0.3", "friction=0.3")),
    ],
)
def test_step_is_not_known_where_it_is_that_of_another_robot_or_not_observed_as_it_is(
    perturbation: str, environments: tuple[str, ...]
) -> None:
    none_of_it = f"{perturbation.partition('=')[0]}=0"
    for environment in environments:
        for others in ([], ["actuation=0.1"]):
            assert known_step(make_task(environment, perturbations=[*others, perturbation])) is None
            assert known_step(make_task(environment, perturbations=[*others, none_of_it])) is not None
    assert known_step(make_task("InvertedPendulum-v5", perturbations=["actuation=0.1", "dynamics=0.1"])) is not None
