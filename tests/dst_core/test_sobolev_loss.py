"""The critic's loss against the distance of vectors scaled by hand."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.func import functional_call

from dst_core.critic import CRITICS, GenerativeCritic, JointSamples, NoiseEntry
from dst_core.mmd import Estimator, Kernel, cross_fitted_sliced_mmd2, max_sliced_mmd2, mmd2
from dst_core.networks import ActionScale, Standardiser
from dst_core.sobolev_loss import Distance, JointScale, sobolev_loss

E, B, N, K, A, S = 2, 4, 5, 6, 2, 3
BLOCKS: list[tuple[str, ...]] = [(), ("action",), ("state",), ("action", "state")]
DISTANCES: list[Distance] = ["mmd", "max-sliced-mmd"]
BANDWIDTH = 3.0


def predicted(generator: torch.Generator) -> JointSamples:
    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return JointSamples(
        returns=40 * draw(E, B, N), action_gradient=7 * draw(E, B, N, A), observation_gradient=draw(E, B, N, S)
    )


def target(generator: torch.Generator, blocks: tuple[str, ...]) -> torch.Tensor:
    columns = 1 + A * ("action" in blocks) + S * ("state" in blocks)
    return 20 * torch.randn(B, K, columns, generator=generator, dtype=torch.float64) + 3


@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_loss_is_the_distance_of_hand_scaled_vectors(
    blocks: tuple[str, ...], distance: Distance, estimator: Estimator
) -> None:
    generator = torch.Generator().manual_seed(0)
    samples, goal = predicted(generator), target(generator, blocks)
    std = torch.linspace(0.5, 9, goal.shape[-1], dtype=torch.float64)
    weight = 0.3
    discrepancy = {
        ("mmd", "unbiased"): mmd2,
        ("mmd", "biased"): partial(mmd2, estimator="biased"),
        ("max-sliced-mmd", "unbiased"): cross_fitted_sliced_mmd2,
        ("max-sliced-mmd", "biased"): partial(max_sliced_mmd2, estimator="biased"),
    }[distance, estimator]
    expected = 0.0
    for member in range(E):
        for row in range(B):
            columns = [samples.returns[member, row, :, None]]
            columns += [samples.action_gradient[member, row]] if "action" in blocks else []
            columns += [samples.observation_gradient[member, row]] if "state" in blocks else []
            x, y = torch.cat(columns, -1) / std, goal[row] / std
            for vectors in (x, y):
                vectors[:, 1:] *= weight
            expected += float(discrepancy(x, y, bandwidth=BANDWIDTH)) / B
    found = sobolev_loss(
        samples,
        goal,
        std=std,
        gradient_weight=weight,
        distance=distance,
        bandwidth=BANDWIDTH,
        estimator=estimator,
        blocks=blocks,
    )
    assert float(found) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_target_samples_are_not_compared_with_the_prediction_of_their_own_noise(distance: Distance) -> None:
    generator = torch.Generator().manual_seed(3)
    samples, goal = predicted(generator), target(generator, ("action",))
    std = torch.linspace(0.5, 9, goal.shape[-1], dtype=torch.float64)
    draw = torch.stack([torch.randperm(K, generator=generator).remainder(N).sort().values for _ in range(B)])
    discrepancy = mmd2 if distance == "mmd" else cross_fitted_sliced_mmd2
    expected = 0.0
    for member in range(E):
        for row in range(B):
            x = torch.cat([samples.returns[member, row, :, None], samples.action_gradient[member, row]], -1) / std
            together = torch.tensor([[int(draw[row, k]) == n for k in range(K)] for n in range(N)])
            expected += float(discrepancy(x, goal[row] / std, bandwidth=BANDWIDTH, together=together)) / B
    given = {"std": std, "gradient_weight": 1.0, "distance": distance, "bandwidth": BANDWIDTH}
    found = sobolev_loss(samples, goal, target_draw=draw, **given)
    assert float(found) == pytest.approx(expected, rel=1e-9)
    assert float(sobolev_loss(samples, goal, **given)) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("blocks", BLOCKS[1:])
def test_weight_zero_leaves_the_loss_of_the_return_alone(blocks: tuple[str, ...], distance: Distance) -> None:
    generator = torch.Generator().manual_seed(1)
    goal = target(generator, blocks)
    # Far apart: where the unbiased distance of the returns is negative, the best slice is one that leaves them out.
    samples = predicted(generator)._replace(returns=200 + 40 * torch.rand(E, B, N, generator=generator).double())
    std = torch.linspace(0.5, 9, goal.shape[-1], dtype=torch.float64)
    given = {"distance": distance, "bandwidth": BANDWIDTH}
    weighted = sobolev_loss(samples, goal, std=std, gradient_weight=0.0, blocks=blocks, **given)
    others = predicted(generator)._replace(returns=samples.returns)
    other_goal = torch.cat([goal[..., :1], target(generator, blocks)[..., 1:]], -1)
    assert float(sobolev_loss(others, other_goal, std=std, gradient_weight=0.0, blocks=blocks, **given)) == float(
        weighted
    )
    # Of the return alone the max-sliced distance is measured on all samples at once: another estimate of the same distance.
    alone = sobolev_loss(samples, goal[..., :1], std=std[:1], gradient_weight=1.0, blocks=(), **given)
    assert float(weighted) == pytest.approx(float(alone), rel=1e-9 if distance == "mmd" else 0.1)


def test_loss_does_not_depend_on_the_units_of_any_column() -> None:
    generator = torch.Generator().manual_seed(2)
    blocks = ("action", "state")
    samples, goal = predicted(generator), target(generator, blocks)
    std = torch.linspace(0.5, 9, 1 + A + S, dtype=torch.float64)
    units = torch.tensor([1000.0, 0.01, 3.0, 60.0, 1e-3, 57.3], dtype=torch.float64)
    rescaled = JointSamples(
        returns=samples.returns * units[0],
        action_gradient=samples.action_gradient * units[1 : 1 + A],
        observation_gradient=samples.observation_gradient * units[1 + A :],
    )

    def loss(these: JointSamples, goal: torch.Tensor, std: torch.Tensor) -> float:
        return float(
            sobolev_loss(these, goal, std=std, gradient_weight=0.5, distance="mmd", bandwidth=BANDWIDTH, blocks=blocks)
        )

    assert loss(rescaled, goal * units, std * units) == pytest.approx(loss(samples, goal, std), rel=1e-9)
    assert loss(rescaled, goal * units, std) != pytest.approx(loss(samples, goal, std), rel=0.01)


@pytest.mark.parametrize("distance", DISTANCES)
def test_loss_reaches_returns_and_the_gradients_of_its_blocks(distance: Distance) -> None:
    generator = torch.Generator().manual_seed(3)
    samples = JointSamples(*(part.requires_grad_() for part in predicted(generator)))
    goal = target(generator, ("action",))
    std = torch.ones(1 + A, dtype=torch.float64)
    sobolev_loss(samples, goal, std=std, gradient_weight=1.0, distance=distance, bandwidth=BANDWIDTH).backward()
    assert samples.returns.grad is not None
    assert samples.action_gradient.grad is not None
    assert bool(samples.returns.grad.any())
    assert bool(samples.action_gradient.grad.any())
    assert samples.observation_gradient.grad is None


class LossOf(nn.Module):
    """The loss of a critic's law along fixed noise, as `CriticLearner` computes it."""

    def __init__(self, critic: GenerativeCritic, **choices: object) -> None:
        super().__init__()
        self.critic = critic
        self.choices = choices

    def forward(self, observation: torch.Tensor, action: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        blocks = ("action", "state")
        joint = self.critic.joint_columns(observation, action, noise, blocks=blocks)
        return sobolev_loss(joint, distance="mmd", gradient_weight=0.7, blocks=blocks, **self.choices)


@pytest.mark.parametrize("shares_noise", [True, False], ids=["target along the same noise", "independent target"])
@pytest.mark.parametrize(("kernel", "bandwidth"), [("multiquadric", 3.0), ("gaussian", 0.5)])
@pytest.mark.parametrize("estimator", ["unbiased", "biased"])
@pytest.mark.parametrize("entry", CRITICS)
def test_gradient_of_the_loss_by_every_parameter_is_its_finite_difference(
    entry: NoiseEntry, estimator: Estimator, kernel: Kernel, bandwidth: float, *, shares_noise: bool
) -> None:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    states, actions, rows, samples, kept = 2, 1, 2, 3, 5
    torch.manual_seed(0)
    observation = Standardiser(states)
    observation.update(torch.randn(20, states) * torch.tensor([2.0, 0.3]) + 1)
    critic = CRITICS[entry](
        observation=observation,
        action=ActionScale(torch.zeros(actions), torch.full((actions,), 6.0)),
        hidden=4,
        noise_size=2,
        members=2,
    ).double()
    critic.return_scale.fill_(3.0)
    critic.noise_in.data.mul_(2)
    loss = LossOf(
        critic,
        target=draw(rows, kept, 1 + actions + states),
        std=torch.linspace(0.5, 2, 1 + actions + states, dtype=torch.float64),
        kernel=kernel,
        bandwidth=bandwidth,
        estimator=estimator,
        target_draw=torch.tensor([[0, 0, 1, 2, 2], [0, 1, 1, 1, 2]]) if shares_noise else None,
    )
    inputs = draw(rows, states), 3 + draw(rows, actions), draw(2, rows, samples, 2)
    names = [name for name, _ in loss.named_parameters()]
    parameters = tuple(parameter.detach().requires_grad_() for parameter in loss.parameters())

    def of_parameters(*values: torch.Tensor) -> torch.Tensor:
        return functional_call(loss, dict(zip(names, values, strict=True)), inputs)

    slopes = torch.autograd.grad(of_parameters(*parameters), parameters)
    assert all(float(slope.abs().max()) > 1e-4 for slope in slopes)
    assert torch.autograd.gradcheck(of_parameters, parameters, eps=1e-6, rtol=1e-5, atol=1e-8)


def test_joint_scale_is_the_running_standard_deviation_of_a_naive_loop() -> None:
    generator = torch.Generator().manual_seed(4)
    rate = 0.25
    scale = JointScale(3, rate=rate)
    seen: list[torch.Tensor] = []
    expected = torch.ones(3)
    for batch in range(12):
        samples = (1 + batch) * torch.randn(4, 5, 3, generator=generator) * torch.tensor([1.0, 30.0, 0.02]) + 5
        scale.update(samples)
        seen.append(samples.reshape(20, 3).std(0))
        averaging = len(seen) <= 1 / rate
        expected = torch.stack(seen).mean(0) if averaging else (1 - rate) * expected + rate * seen[-1]
        torch.testing.assert_close(scale.std, expected, rtol=1e-5, atol=1e-7)


def test_joint_scale_of_a_constant_column_stays_above_its_floor() -> None:
    scale = JointScale(2, floor=1e-3)
    scale.update(torch.ones(4, 5, 2))
    assert scale.std.tolist() == pytest.approx([1e-3, 1e-3])


@pytest.mark.parametrize("distance", DISTANCES)
def test_loss_and_its_gradient_do_not_depend_on_how_many_rows_are_compared_at_once(
    distance: Distance, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = target(torch.Generator().manual_seed(1), ("action",))
    losses, slopes = [], []
    columns = 1 + A if distance == "mmd" else 1
    for numbers in (1, 3 * E * N * K * columns, 1 << 20):  # one row, three rows with one left over, all
        monkeypatch.setattr("dst_core.sobolev_loss.DIFFERENCES_AT_ONCE", numbers)
        samples = predicted(torch.Generator().manual_seed(0))
        samples.returns.requires_grad_()
        std = torch.ones(goal.shape[-1], dtype=torch.float64)
        loss = sobolev_loss(samples, goal, std=std, gradient_weight=1.0, distance=distance, bandwidth=BANDWIDTH)
        losses.append(loss.detach())
        slopes.append(torch.autograd.grad(loss, samples.returns)[0])
    for loss, slope in zip(losses, slopes, strict=True):
        assert torch.allclose(loss, losses[-1], rtol=1e-12, atol=0)
        assert torch.allclose(slope, slopes[-1], rtol=1e-10, atol=1e-14)
