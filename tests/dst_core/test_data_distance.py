"""Distance of an observation to the nearest of some of the training data."""

import pytest
import torch

from dst_core.data_distance import REFERENCES, DataDistance, draw_references


@pytest.fixture
def references() -> torch.Tensor:
    return torch.randn(200, 7, generator=torch.Generator().manual_seed(0))


def naive(references: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Every pair, in float64."""
    difference = x.double().unsqueeze(1) - references.double()
    return difference.square().mean(2).sqrt().amin(1)


@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0, 1e4])
def test_distance_is_that_of_the_nearest_pair(references: torch.Tensor, scale: float) -> None:
    x = scale * torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(DataDistance(references)(x).double(), naive(references, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_reference_is_at_no_distance_from_itself(references: torch.Tensor, scale: float) -> None:
    own = scale * references
    assert float(DataDistance(own)(own).max()) == 0.0


def test_small_distances_are_not_lost_to_cancellation(references: torch.Tensor) -> None:
    far = references + 100
    shifted = far + 1e-3
    torch.testing.assert_close(DataDistance(far)(shifted).double(), naive(far, shifted), rtol=1e-5, atol=0)


def test_references_are_drawn_without_replacement_and_by_their_seed() -> None:
    rows = torch.arange(2000.0).unsqueeze(1)
    drawn = draw_references(rows, seed=3)
    assert len(drawn) == REFERENCES == len(drawn.unique())
    assert torch.equal(drawn, draw_references(rows, seed=3))
    assert not torch.equal(drawn, draw_references(rows, seed=4))
    assert sorted(draw_references(rows[:10], seed=3).flatten().tolist()) == list(range(10))
