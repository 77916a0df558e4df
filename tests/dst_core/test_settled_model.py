"""The world model behind the served law: settled on the replay, the run's own left alone."""

import itertools

import pytest
import torch

from dst_core.execution import EAGER
from dst_core.replay import Replay
from dst_core.settled_model import settled
from dst_core.world_model import LearnedModel, Transition
from tests.dst_core.world_models.fitting import MODELS, build, fit, linear_quadratic

every_model = pytest.mark.parametrize("name", MODELS)


def learned(name: str) -> tuple[LearnedModel, Replay]:
    """A model as a run leaves it, after some steps at a constant step size, and its replay."""
    data = linear_quadratic(2000, 0)
    model = build(name, data)
    fit(model, data, updates=100)
    replay = Replay(capacity=2000, observation_size=1, action_size=1, device=torch.device("cpu"))
    for row in zip(*(rows.split(1) for rows in data), strict=True):
        replay.add(Transition(*row))
    return model, replay


def settle(
    model: LearnedModel, replay: Replay, *, updates: int, seed: int = 0, stop_at: int = -1
) -> LearnedModel | None:
    count = itertools.count()
    return settled(
        model,
        replay,
        updates=updates,
        batch=128,
        learning_rate=1e-2,
        max_gradient_norm=10.0,
        execution=EAGER,
        generator=torch.Generator().manual_seed(seed),
        interrupted=lambda: next(count) == stop_at,
        track=range,
    )


@every_model
def test_settled_model_is_nearer_to_the_true_law(name: str) -> None:
    model, replay = learned(name)
    held_out = linear_quadratic(3000, 1)
    after = settle(model, replay, updates=400)
    assert after is not None
    before, later = (m.log_likelihood(held_out, torch.Generator().manual_seed(0)).mean() for m in (model, after))
    assert float(later - before) > 0.02


@every_model
def test_model_of_the_run_stays_as_it_is_and_the_same_noise_settles_it_alike(name: str) -> None:
    model, replay = learned(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    one, other = (settle(model, replay, updates=3) for _ in range(2))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    moved = zip(model.parameters(), one.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


def test_interrupted_between_two_steps_nothing_is_returned() -> None:
    model, replay = learned("flow")
    assert settle(model, replay, updates=5, stop_at=3) is None
