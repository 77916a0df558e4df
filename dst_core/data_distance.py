"""How far is an observation from the training data? The distance to the nearest of some of it.

    d(s) = min_r sqrt( mean_i ((s_i - r_i) / std_i)^2 ),   r among N reference observations.

The nearest one is found by a single matrix product, argmin_r |r|^2 / 2 - s r, and its distance is then taken from the difference itself:
the expanded square would leave the rounding of |s|^2 where s and r are close.
"""

import torch
from torch import Tensor, nn

REFERENCES = 512


class DataDistance(nn.Module):
    """Distance to the nearest reference, all in standardised channels.

    Args:
        references: (N, S), standardised.
    """

    references: Tensor
    columns: Tensor
    half_square: Tensor

    def __init__(self, references: Tensor) -> None:
        super().__init__()
        self.register_buffer("references", references)
        self.register_buffer("columns", -references.mT.contiguous())
        self.register_buffer("half_square", references.square().sum(1) / 2)

    def forward(self, standardised: Tensor) -> Tensor:
        """Observations (B, S) to their distances, (B,), in standard deviations."""
        nearest = torch.addmm(self.half_square, standardised, self.columns).argmin(1)
        difference = standardised - nn.functional.embedding(nearest, self.references)
        distance: Tensor = torch.linalg.vector_norm(difference, dim=1) * self.references.shape[1] ** -0.5
        return distance


def draw_references(observations: Tensor, *, seed: int) -> Tensor:
    """Up to 512 of the observations (R, S), drawn without replacement."""
    order = torch.randperm(len(observations), generator=torch.Generator().manual_seed(seed))
    return observations[order[:REFERENCES].to(observations.device)]
