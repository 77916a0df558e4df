import pytest
import torch

from dst_core.critic import CRITICS, GenerativeCritic, NoiseEntry
from dst_core.networks import ActionScale, EnsembleLinear, Standardiser, descend, polyak, target_of


@pytest.fixture(params=CRITICS)
def critic(request: pytest.FixtureRequest) -> GenerativeCritic:
    entry: NoiseEntry = request.param
    torch.manual_seed(0)
    observation = Standardiser(3)
    observation.update(torch.randn(50, 3) * torch.tensor([1.0, 5.0, 0.2]) + 1)
    action = ActionScale(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 6.0]))
    built = CRITICS[entry](observation=observation, action=action, hidden=16, noise_size=4, members=2)
    built.return_scale.fill_(7.0)
    return built.double()


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(5, 3, generator=generator, dtype=torch.float64), torch.randn(
        5, 2, generator=generator, dtype=torch.float64
    )


def test_closed_gradients_equal_those_of_autograd(critic: GenerativeCritic) -> None:
    observation, action = (rows.requires_grad_() for rows in inputs())
    noise = critic.draw_noise(5, 6, torch.Generator().manual_seed(2))
    joint = critic.joint(observation, action, noise)
    returns = critic(observation, action, noise)
    torch.testing.assert_close(joint.returns, returns)
    for member in range(2):
        for sample in range(6):
            by_observation, by_action = torch.autograd.grad(
                returns[member, :, sample].sum(), (observation, action), retain_graph=True
            )
            torch.testing.assert_close(joint.observation_gradient[member, :, sample], by_observation)
            torch.testing.assert_close(joint.action_gradient[member, :, sample], by_action)


def test_action_gradient_equals_finite_differences_in_the_users_units(critic: GenerativeCritic) -> None:
    observation, action = inputs()
    noise = critic.draw_noise(5, 3, torch.Generator().manual_seed(2))
    step = 1e-6
    for index in range(2):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[index] = step
        slope = (critic(observation, action + shift, noise) - critic(observation, action - shift, noise)) / (2 * step)
        torch.testing.assert_close(
            critic.joint(observation, action, noise).action_gradient[..., index], slope, rtol=1e-6, atol=1e-8
        )


def test_loss_on_gradients_reaches_every_parameter_but_the_last_bias(critic: GenerativeCritic) -> None:
    observation, action = inputs()
    joint = critic.joint(observation, action, critic.draw_noise(5, 3))
    joint.action_gradient.square().sum().backward()
    silent = {
        name for name, parameter in critic.named_parameters() if parameter.grad is None or not parameter.grad.any()
    }
    assert silent == {"head.bias"}


def test_noise_moves_samples_and_their_gradients(critic: GenerativeCritic) -> None:
    """Both entries of the noise give laws of the gradient, not the return alone shifted."""
    observation, action = inputs()
    joint = critic.joint(observation, action, critic.draw_noise(5, 50, torch.Generator().manual_seed(2)))
    for samples in (joint.returns.unsqueeze(-1), joint.action_gradient, joint.observation_gradient):
        assert float(samples.detach().std(2).min()) > 1e-3


def test_one_noise_row_is_shared_by_the_batch(critic: GenerativeCritic) -> None:
    observation, action = inputs()
    shared = critic.draw_noise(1, 4, torch.Generator().manual_seed(3))
    together = critic.joint(observation, action, shared)
    alone = critic.joint(observation[2:3], action[2:3], shared)
    torch.testing.assert_close(together.returns[:, 2:3], alone.returns)
    torch.testing.assert_close(together.action_gradient[:, 2:3], alone.action_gradient)


def test_members_of_an_ensemble_are_independent_affine_maps() -> None:
    layer = EnsembleLinear(3, 4, 2)
    x = torch.randn(5, 4)
    expected = torch.stack([x @ layer.weight[member] + layer.bias[member] for member in range(3)])
    torch.testing.assert_close(layer(x), expected)


def test_standardiser_equals_the_statistics_of_all_rows_seen() -> None:
    rows = torch.randn(101, 3) * 4 + 2
    standardiser = Standardiser(3)
    for part in rows.split([1, 30, 70]):
        standardiser.update(part)
    torch.testing.assert_close(standardiser.mean, rows.mean(0))
    torch.testing.assert_close(standardiser.std, rows.std(0, correction=0))
    torch.testing.assert_close(standardiser.low, rows.amin(0))
    torch.testing.assert_close(standardiser.high, rows.amax(0))
    torch.testing.assert_close(standardiser.restore(standardiser.standardise(rows)), rows)


def test_polyak_moves_parameters_and_shares_scales(critic: GenerativeCritic) -> None:
    target = target_of(critic)
    before = target.head.weight.clone()
    with torch.no_grad():
        critic.head.weight.add_(1.0)
    polyak(target, critic, 0.25)
    torch.testing.assert_close(target.head.weight, before + 0.25)
    critic.return_scale.fill_(3.0)
    assert float(target.return_scale) == 3.0
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_fused_step_equals_the_plain_one_whatever_the_layout_of_the_gradient() -> None:
    """A product with a transposed weight gives a gradient with transposed strides."""
    generator = torch.Generator().manual_seed(0)
    start, x = torch.randn(2, 3, 5, generator=generator), torch.randn(2, 7, 5, generator=generator)
    results = []
    for fused in (True, False):
        weight = torch.nn.Parameter(start.clone())
        optimiser = torch.optim.Adam([weight], lr=0.1, fused=fused)
        for _ in range(3):
            descend(optimiser, ((x @ weight.transpose(-1, -2)) ** 3).sum(), max_gradient_norm=1e9)
        results.append(weight.detach())
    torch.testing.assert_close(*results)


def test_step_leaves_other_networks_without_gradients() -> None:
    mine, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    descend(torch.optim.Adam(mine.parameters(), lr=0.1), other(mine(torch.ones(1, 2))).sum(), max_gradient_norm=1.0)
    assert other.weight.grad is None
