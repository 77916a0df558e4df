import torch

from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import Transition
from dst_core.world_models.conditional_vae import ConditionalVae
from dst_core.world_models.gaussian import Gaussian
from tests.dst_core.linear_quadratic import LinearQuadratic


def transitions(count: int, seed: int) -> Transition:
    """s' = s + a + w with w = ±0.5 + 0.1 noise, r = 2 s; ends where s' > 1."""
    generator = torch.Generator().manual_seed(seed)
    s = 2 * torch.rand(count, 1, generator=generator) - 1
    a = 2 * torch.rand(count, 1, generator=generator) - 1
    side = 2.0 * torch.randint(2, (count, 1), generator=generator) - 1
    following = s + a + 0.5 * side + 0.1 * torch.randn(count, 1, generator=generator)
    return Transition(s, a, 2 * s[:, 0], following, (following[:, 0] > 1).float())


def build(data: Transition) -> ConditionalVae:
    torch.manual_seed(0)
    observation = Standardiser(1)
    observation.update(data.observation)
    model = ConditionalVae(
        observation=observation, action=ActionScale(-torch.ones(1), torch.ones(1)), hidden=32, latent=2
    )
    model.observe(data)
    return model


def fit(model: ConditionalVae, data: Transition, updates: int) -> ConditionalVae:
    generator = torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(updates):
        index = torch.randint(len(data.reward), (128,), generator=generator)
        losses = model.losses(Transition(*(rows[index] for rows in data)), generator)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    return model


def test_model_learns_a_bimodal_step_its_reward_and_its_end() -> None:
    data = transitions(5000, 0)
    model = fit(build(data), data, 1500)
    with torch.no_grad():
        s, a = torch.full((4000, 1), 0.2), torch.full((4000, 1), 0.1)
        draw = model.sample(s, a, torch.Generator().manual_seed(2))
    noise = draw.next_observation[:, 0] - 0.3
    assert abs(float(noise.mean())) < 0.08
    assert abs(float(noise.std()) - 0.51) < 0.08
    assert (
        float((noise.abs() < 0.2).float().mean()) < 0.15
    )  # the truth has 0.1 % between its two modes, a Gaussian 30 %
    assert abs(float(draw.reward.mean()) - 0.4) < 0.1
    clear = (draw.next_observation[:, 0] - 1).abs() > 0.3
    truth = (draw.next_observation[:, 0] > 1).float()
    assert float((draw.termination - truth).abs()[clear].mean()) < 0.1


def test_draws_are_differentiable_in_state_and_action_along_fixed_noise() -> None:
    data = transitions(500, 0)
    model = build(data).double()
    s = torch.tensor([[0.3], [-0.2]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[0.1], [0.4]], dtype=torch.float64, requires_grad=True)

    def draw(state: torch.Tensor, action: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(model.sample(state, action, torch.Generator().manual_seed(3)))

    assert torch.autograd.gradcheck(draw, (s, a))


def test_draws_stay_in_the_range_of_the_data() -> None:
    data = transitions(500, 0)
    model = build(data)
    with torch.no_grad():
        draw = model.sample(torch.full((50, 1), 100.0), torch.full((50, 1), 100.0), torch.Generator().manual_seed(0))
    assert float(draw.next_observation.max()) <= float(data.next_observation.max())
    assert float(draw.reward.max()) <= float(data.reward.max())


def test_divergence_equals_that_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = (Gaussian(*torch.randn(2, 5, 3, generator=generator)) for _ in range(2))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(p.mean, p.log_std.exp()), torch.distributions.Normal(q.mean, q.log_std.exp())
    ).sum(-1)
    torch.testing.assert_close(p.divergence(q), expected)


def test_bound_is_below_the_true_log_likelihood() -> None:
    """The evidence lower bound of a fitted model approaches, and does not pass, the entropy of the linear-quadratic step."""
    problem = LinearQuadratic.scalar()
    data = problem.transitions(count=5000, width=2.0, seed=0)
    observation = Standardiser(1)
    observation.update(data.observation)
    torch.manual_seed(0)
    model = ConditionalVae(
        observation=observation, action=ActionScale(-2 * torch.ones(1), 2 * torch.ones(1)), hidden=32, latent=2
    )
    model.observe(data)
    model.outcome.std[-1] = 1e6  # the deterministic reward has no density: leave it out of the comparison
    fit(model, data, 600)
    with torch.no_grad():
        model.output_log_std[-1] = 0.0
        negative = float(model.losses(data, torch.Generator().manual_seed(0))["model_loss"])
    entropy = 0.5 * float(torch.log(torch.tensor(2 * torch.pi * torch.e))) + float(
        torch.log(0.3 / model.outcome.std[0])
    )
    reward_part = 0.5 * float(torch.log(torch.tensor(2 * torch.pi)))
    assert -0.03 < negative - reward_part - entropy < 0.3
