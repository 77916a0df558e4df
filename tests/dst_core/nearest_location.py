"""A smooth policy for the point mass that makes for the nearest location."""

import torch
from torch import Tensor, nn


class NearestLocation(nn.Module):
    """tanh of `gain` times the way to the locations' mean, weighted by a softmax of -sharpness x squared distance."""

    def __init__(self, positions: Tensor, *, gain: float = 5.0, sharpness: float = 20.0) -> None:
        super().__init__()
        self.positions, self.gain, self.sharpness = positions, gain, sharpness

    def forward(self, observation: Tensor) -> Tensor:
        positions = self.positions.to(observation)
        squared_distance = (observation.unsqueeze(-2) - positions).square().sum(-1)
        nearest = torch.softmax(-self.sharpness * squared_distance, -1) @ positions
        return torch.tanh(self.gain * (nearest - observation))
