"""Returns that the world model imagines follow the law of the return in that model."""

import math

import pytest
import torch
from torch import Tensor, nn

from dst_core.model_returns import ModelReturns, model_returns
from dst_core.replay import Replay
from dst_core.world_model import ModelDraw, Transition

DISCOUNT = 0.9


class Drift:
    """s' = s + a, reward s + noise N(0, 1), and with every step it may end."""

    reward_range = (torch.tensor(-torch.inf), torch.tensor(torch.inf))

    def __init__(self, *, noise: float, end: float) -> None:
        self.noise = noise
        self.end = end

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        row = observation.sum(-1)
        reward = row + self.noise * torch.randn(row.shape, generator=generator)
        return ModelDraw(observation + action, reward, torch.full_like(row, self.end))


class Still(nn.Module):
    def forward(self, observation: Tensor) -> Tensor:
        return 0 * observation


def imagined(model: Drift, *, most: int = 4096, interrupted_after: int | None = None) -> ModelReturns | None:
    """From states and first actions that are all 1, in batches of 64."""
    replay = Replay(capacity=64, observation_size=1, action_size=1, device=torch.device("cpu"))
    one = torch.ones(1, 1)
    for _ in range(64):
        replay.add(Transition(one, one, torch.zeros(1), one, torch.zeros(1)))
    asked = iter(range(10**6))
    return model_returns(
        replay,
        most=most,
        batch=64,
        model=model,
        actor=Still(),
        discount=DISCOUNT,
        generator=torch.Generator().manual_seed(0),
        interrupted=lambda: interrupted_after is not None and next(asked) >= interrupted_after,
    )


def test_first_action_is_replayed_and_the_actor_goes_on() -> None:
    """Rewards 1, then 2 for ever: 1 + 2 discount / (1 - discount), though only 99 % of its weight is followed."""
    found = imagined(Drift(noise=0.0, end=0.0), most=64)
    assert found is not None
    whole = 1 + 2 * DISCOUNT / (1 - DISCOUNT)
    assert found.returns.shape == (64, 2)
    torch.testing.assert_close(found.returns, torch.full((64, 2), whole), rtol=1e-3, atol=0)


def test_spread_of_the_rewards_is_kept_and_both_returns_of_a_state_are_independent() -> None:
    found = imagined(Drift(noise=1.0, end=0.0))
    assert found is not None
    assert float(found.returns.std()) == pytest.approx(1 / math.sqrt(1 - DISCOUNT**2), rel=0.03)
    assert abs(float(torch.corrcoef(found.returns.T)[0, 1])) < 0.05


def test_ends_are_drawn_and_not_averaged_over() -> None:
    """N steps, N geometric: G = 1 + 2 (discount - discount^N) / (1 - discount), and E x^N = end x / (1 - (1 - end) x)."""
    end = 0.2
    found = imagined(Drift(noise=0.0, end=end))
    assert found is not None
    power, square = (end * x / (1 - (1 - end) * x) for x in (DISCOUNT, DISCOUNT**2))
    mean = 1 + 2 * (DISCOUNT - power) / (1 - DISCOUNT)
    std = 2 * math.sqrt(square - power**2) / (1 - DISCOUNT)
    assert float(found.returns.mean()) == pytest.approx(mean, rel=0.02)
    assert float(found.returns.std()) == pytest.approx(std, rel=0.03)


def test_no_more_states_than_are_worth_having_and_none_after_an_interruption() -> None:
    few = imagined(Drift(noise=0.0, end=0.0), most=100)
    assert few is not None
    assert len(few.observation) == len(few.action) == len(few.returns) == 128  # whole batches
    assert imagined(Drift(noise=0.0, end=0.0), interrupted_after=3) is None
