"""The evaluation critic forgets the pessimism of the critics it starts from."""

import pytest
import torch
from torch import Tensor, nn

from dst_core.agent_config import AgentConfig
from dst_core.critic import LayerTwoNoiseCritic
from dst_core.forecast import Forecast
from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import ModelDraw, Transition

DISCOUNT = 0.99


class OneAStep:
    """Reward 1 at every step for ever: the return is 1 / (1 - discount)."""

    reward_range = (torch.tensor(-torch.inf), torch.tensor(torch.inf))

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        noise = torch.randn(observation.shape, generator=generator)
        nothing = 0 * action.sum(-1)
        return ModelDraw(0.5 * observation + 0.5 * noise, 1 + nothing, nothing)


class Still(nn.Module):
    def forward(self, observation: Tensor) -> Tensor:
        return 0 * observation


def test_bias_of_the_start_is_forgotten_at_a_long_horizon() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    limit = torch.ones(1)
    start = LayerTwoNoiseCritic(
        observation=Standardiser(1), action=ActionScale(-limit, limit), hidden=16, noise_size=4, members=2
    )
    start.return_scale.fill_(20.0)
    with torch.no_grad():
        start.head.bias.fill_(80.0 / 20.0)
    updates = 600
    forecast = Forecast(start, config=AgentConfig(discount=DISCOUNT, samples=4), updates=updates)
    for _ in range(updates):
        state = torch.randn(32, 1, generator=generator)
        transition = Transition(
            state, 2 * torch.rand(32, 1, generator=generator) - 1, torch.ones(32), state, torch.zeros(32)
        )
        forecast.step(transition, model=OneAStep(), actor=Still(), generator=generator)
    state = torch.linspace(-1, 1, 9)[:, None]
    with torch.no_grad():
        returns = forecast.critic(state, 0 * state, forecast.critic.draw_noise(9, 200, generator))
    assert float(returns.mean()) == pytest.approx(1 / (1 - DISCOUNT), abs=2)
    assert float(start.head.bias.detach().mean()) == pytest.approx(4.0)
