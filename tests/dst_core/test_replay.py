"""The ring of real transitions."""

import pytest
import torch

from dst_core.replay import Replay
from dst_core.world_model import Transition


def transition(number: int) -> Transition:
    """The transition whose every entry tells its number and its place."""
    value = float(number)
    return Transition(
        torch.tensor([[value, value + 0.1, value + 0.2]]),
        torch.tensor([[value + 0.3, value + 0.4]]),
        torch.tensor([value + 0.5]),
        torch.tensor([[value + 0.6, value + 0.7, value + 0.8]]),
        torch.tensor([value + 0.9]),
    )


def filled(count: int, *, capacity: int) -> Replay:
    replay = Replay(capacity=capacity, observation_size=3, action_size=2, device=torch.device("cpu"))
    for number in range(count):
        replay.add(transition(number))
    return replay


def numbers(replay: Replay, draws: int, seed: int = 0) -> torch.Tensor:
    """Which transitions come up, after checking that each comes up whole."""
    generator = torch.Generator().manual_seed(seed)
    batches = [replay.sample(len(replay), generator) for _ in range(draws)]
    drawn = Transition(*(torch.cat(rows) for rows in zip(*batches, strict=True)))
    found = drawn.observation[:, 0].round().long()
    expected = Transition(*(torch.cat(rows) for rows in zip(*(transition(int(n)) for n in found), strict=True)))
    for rows, wanted in zip(drawn, expected, strict=True):
        torch.testing.assert_close(rows, wanted)
    return found


@pytest.mark.parametrize(("added", "kept"), [(3, range(3)), (5, range(5)), (7, range(2, 7)), (23, range(18, 23))])
def test_ring_keeps_the_newest(added: int, kept: range) -> None:
    replay = filled(added, capacity=5)
    assert len(replay) == len(kept)
    assert replay.added == added
    assert set(numbers(replay, draws=60).tolist()) == set(kept)


def test_sampling_is_uniform_over_what_is_kept() -> None:
    replay = filled(12, capacity=10)
    counts = torch.bincount(numbers(replay, draws=500), minlength=12)
    assert counts[:2].tolist() == [0, 0]
    chi_squared = float(((counts[2:] - 500) ** 2 / 500).sum())
    assert chi_squared < 27.9  # 99.9 % point at nine degrees of freedom


def test_sampling_follows_its_generator() -> None:
    replay = filled(10, capacity=10)
    assert numbers(replay, draws=3, seed=1).tolist() == numbers(replay, draws=3, seed=1).tolist()
    assert numbers(replay, draws=3, seed=1).tolist() != numbers(replay, draws=3, seed=2).tolist()


def test_sampling_more_than_is_kept_is_refused() -> None:
    replay = filled(3, capacity=10)
    with pytest.raises(ValueError, match="must hold a batch of 4 transitions, it holds 3"):
        replay.sample(4, torch.Generator())


@pytest.mark.parametrize("added", [0, 3, 5, 8])
def test_restored_replay_samples_and_overwrites_as_the_saved_one(added: int) -> None:
    saved = filled(added, capacity=5)
    restored = filled(0, capacity=5)
    restored.load_state({name: tensor.clone() for name, tensor in saved.state().items()})
    for number in (100, 101):
        saved.add(transition(number))
        restored.add(transition(number))
    assert len(restored) == len(saved)
    assert numbers(restored, draws=9).tolist() == numbers(saved, draws=9).tolist()
