import pytest
import torch
from torch import Tensor, nn

from dst_core.critic import GenerativeCritic, LayerTwoNoiseCritic
from dst_core.networks import ActionScale, Standardiser
from dst_core.targets import lesser, lesser_target, sobolev_target, truncate, truncated_target
from dst_core.world_model import ModelDraw


class KnownModel:
    """s' = 2 s + 3 a, r = s a, and a termination probability that does not depend on either."""

    reward_range = (torch.tensor(-torch.inf), torch.tensor(torch.inf))

    def __init__(self, termination: float) -> None:
        self.termination = termination

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        reward = (observation * action).sum(-1)
        return ModelDraw(2 * observation + 3 * action, reward, torch.full_like(reward, self.termination))


class Halve(nn.Module):
    def forward(self, observation: Tensor) -> Tensor:
        return observation / 2


@pytest.fixture
def critic() -> GenerativeCritic:
    torch.manual_seed(0)
    limit = torch.ones(1)
    built = LayerTwoNoiseCritic(
        observation=Standardiser(1), action=ActionScale(-limit, limit), hidden=16, noise_size=4, members=2
    )
    return built.double()


OBSERVATION = torch.tensor([[0.3], [-0.7], [1.1]], dtype=torch.float64)
ACTION = torch.tensor([[0.5], [0.2], [-0.4]], dtype=torch.float64)


def target(
    critic: GenerativeCritic,
    observation: Tensor,
    action: Tensor,
    *,
    termination: float = 0.0,
    blocks=("action", "state"),
    noise: Tensor | None = None,
) -> Tensor:
    return sobolev_target(
        observation,
        action,
        model=KnownModel(termination),
        actor=Halve(),
        critic=critic,
        discount=0.9,
        samples=3,
        blocks=blocks,
        noise=noise,
        generator=torch.Generator().manual_seed(5),
    )


def test_gradient_columns_equal_finite_differences_along_fixed_noise(critic: GenerativeCritic) -> None:
    step = 1e-6
    joint = target(critic, OBSERVATION, ACTION)
    by_action = (target(critic, OBSERVATION, ACTION + step) - target(critic, OBSERVATION, ACTION - step))[..., 0] / (
        2 * step
    )
    by_state = (target(critic, OBSERVATION + step, ACTION) - target(critic, OBSERVATION - step, ACTION))[..., 0] / (
        2 * step
    )
    torch.testing.assert_close(joint[..., 1], by_action, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(joint[..., 2], by_state, rtol=1e-6, atol=1e-8)


def test_gradient_column_is_the_chain_rule_of_section_2(critic: GenerativeCritic) -> None:
    joint = target(critic, OBSERVATION, ACTION, blocks=("action",))
    following = 2 * OBSERVATION + 3 * ACTION
    noise = critic.draw_noise(3 * 3, 1, torch.Generator().manual_seed(5))
    repeated = following[:, None].expand(-1, 3, -1).reshape(9, 1)
    future = critic.joint(repeated, repeated / 2, noise)
    slope = OBSERVATION[:, None, 0].repeat(1, 3).reshape(9) + 0.9 * 3 * (
        future.observation_gradient[:, :, 0, 0] + 0.5 * future.action_gradient[:, :, 0, 0]
    )
    torch.testing.assert_close(joint[..., 1], slope.view(2, 3, 3).permute(1, 2, 0).reshape(3, 6))


def test_certain_termination_does_not_bootstrap(critic: GenerativeCritic) -> None:
    joint = target(critic, OBSERVATION, ACTION, termination=1.0)
    expected = torch.cat([OBSERVATION * ACTION, OBSERVATION, ACTION], -1)
    torch.testing.assert_close(joint, expected[:, None].expand_as(joint))


def test_target_stays_within_the_returns_that_rewards_allow(critic: GenerativeCritic) -> None:
    class Bounded(KnownModel):
        reward_range = (torch.tensor(0.0), torch.tensor(0.01))

    critic.head.bias.data.fill_(50.0)
    joint = sobolev_target(
        OBSERVATION,
        ACTION,
        model=Bounded(0.0),
        actor=Halve(),
        critic=critic,
        discount=0.9,
        samples=3,
        generator=torch.Generator().manual_seed(5),
    )
    torch.testing.assert_close(joint[..., 0], torch.full((3, 6), 0.1, dtype=torch.float64))
    free = target(critic, OBSERVATION, ACTION, blocks=("action",))
    torch.testing.assert_close(joint[..., 1], free[..., 1])


def test_target_is_detached(critic: GenerativeCritic) -> None:
    assert not target(critic, OBSERVATION, ACTION).requires_grad


def test_without_blocks_the_target_is_the_return_alone(critic: GenerativeCritic) -> None:
    assert target(critic, OBSERVATION, ACTION, blocks=()).shape == (3, 6, 1)


def test_truncation_drops_the_largest_returns_and_keeps_joint_samples_whole_and_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(4, 10, 3, generator=generator)
    kept = truncate(samples, 0.25)
    assert kept.shape == (4, 8, 3)
    for rows, whole in zip(kept.tolist(), samples.tolist(), strict=True):
        largest = sorted(whole)[8:]
        assert rows == [row for row in whole if row not in largest]


def test_truncation_of_nothing_leaves_the_samples_as_they_are() -> None:
    samples = torch.randn(2, 5, 3)
    assert torch.equal(truncate(samples, 0.0), samples)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_every_kept_sample_names_the_draw_that_made_it(critic: GenerativeCritic, share: float) -> None:
    noise = critic.draw_noise(3, 3, torch.Generator().manual_seed(6))
    whole = target(critic, OBSERVATION, ACTION, noise=noise.flatten(1, 2).unsqueeze(2))
    kept = truncated_target(whole, share, members=2)
    assert torch.equal(kept.joint, truncate(whole, share))
    for draw in range(3):
        other = noise.clone()
        other[:, :, draw] += 1
        moved = target(critic, OBSERVATION, ACTION, noise=other.flatten(1, 2).unsqueeze(2))
        changed = {tuple(row.tolist()) for row in whole[(whole != moved).any(-1)]}
        for row in range(3):
            made_by = {tuple(sample.tolist()) for sample in kept.joint[row][kept.draw[row] == draw]}
            assert made_by <= changed
            assert not {tuple(sample.tolist()) for sample in kept.joint[row][kept.draw[row] != draw]} & changed


def test_lesser_law_is_that_of_the_critic_with_the_lesser_mean_whole_and_row_by_row() -> None:
    samples = torch.randn(7, 5, 3, 4, generator=torch.Generator().manual_seed(7))  # row, draw, critic, column
    kept = lesser(samples.flatten(1, 2), members=3)
    for row in range(7):
        means = [sum(samples[row, :, critic, 0].tolist()) for critic in range(3)]
        assert torch.equal(kept[row], samples[row, :, means.index(min(means))])


def test_lesser_law_takes_off_what_critics_disagree_about_and_leaves_the_spread_of_the_return_alone() -> None:
    noise = torch.randn(400, 200, 2, 1, generator=torch.Generator().manual_seed(8))
    apart = torch.tensor([0.0, 3.0])[:, None]

    def means(spread: float, disagreement: float) -> tuple[float, float]:
        both = (spread * noise + disagreement * apart).flatten(1, 2)
        return float(lesser(both, members=2).mean()), float(truncate(both, 0.2).mean())

    narrow, wide = means(1.0, 1.0), means(4.0, 1.0)
    assert narrow[0] == pytest.approx(0, abs=0.02)
    assert wide[0] == pytest.approx(0, abs=0.08)
    assert wide[1] < narrow[1] - 0.5, "truncation takes the spread for error"


def test_every_sample_of_the_lesser_law_names_the_draw_that_made_it(critic: GenerativeCritic) -> None:
    noise = critic.draw_noise(3, 3, torch.Generator().manual_seed(6))
    target_of = lesser_target(target(critic, OBSERVATION, ACTION, noise=noise.flatten(1, 2).unsqueeze(2)), members=2)
    for draw in range(3):
        alone = noise[:, :, draw : draw + 1].expand(-1, -1, 3, -1)
        whole = target(critic, OBSERVATION, ACTION, noise=alone.flatten(1, 2).unsqueeze(2))
        named = target_of.joint[target_of.draw == draw]
        assert len(named) == 3
        for row, sample in enumerate(named):
            assert bool((whole[row] == sample).all(-1).any())


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_truncation_outside_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        truncate(torch.zeros(1, 4, 2), share)


class Detached(KnownModel):
    """A simulator through which nothing differentiates, beside a reward that may still be a formula of its inputs."""

    def __init__(self, sees: tuple[str, ...], *, reward_is_a_formula: bool) -> None:
        super().__init__(0.0)
        self.sees = sees
        self.reward_is_a_formula = reward_is_a_formula

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        draw = super().sample(
            observation if "state" in self.sees else observation.detach(),
            action if "action" in self.sees else action.detach(),
            generator,
        )
        return draw._replace(reward=(observation * action).sum(-1)) if self.reward_is_a_formula else draw


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen critic", "learning critic"])
@pytest.mark.parametrize("reward_is_a_formula", [True, False])
@pytest.mark.parametrize(("sees", "block"), [((), "action"), (("action",), "state"), (("state",), "action")])
def test_world_model_that_is_not_differentiable_is_refused(
    critic: GenerativeCritic, sees: tuple[str, ...], block: str, reward_is_a_formula: bool, frozen: bool
) -> None:
    critic.requires_grad_(not frozen)
    with pytest.raises(ValueError, match=f"differentiable in the {block}, Detached is not"):
        sobolev_target(
            OBSERVATION,
            ACTION,
            model=Detached(sees, reward_is_a_formula=reward_is_a_formula),
            actor=Halve(),
            critic=critic,
            discount=0.9,
            samples=3,
            blocks=("action", "state"),
        )


def test_inputs_that_come_with_a_graph_of_their_own_are_recognised(critic: GenerativeCritic) -> None:
    attached = target(critic, (OBSERVATION.clone().requires_grad_() * 1), (ACTION.clone().requires_grad_() * 1))
    assert torch.equal(attached, target(critic, OBSERVATION, ACTION))
