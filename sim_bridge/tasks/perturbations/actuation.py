"""Actuators that do not do quite what they are told."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim_bridge.tasks.perturbations.wrapper import PerturbationWrapper, box


class ActuationNoise(PerturbationWrapper):
    """Adds N(0, (scale x half the action range)²) to each action component, then clips to the action limits."""

    name = "actuation"
    stream = 1

    def step(self, action: NDArray[Any]) -> tuple[NDArray[Any], Any, bool, bool, dict[str, Any]]:
        """Apply the disturbed action."""
        space = box(self.env.action_space)
        sigma = self.scale * (space.high - space.low) / 2.0
        noisy = action + sigma * self._noise.standard_normal(space.shape)
        return self.env.step(np.clip(noisy, space.low, space.high).astype(space.dtype))
