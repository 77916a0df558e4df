"""What the control loop asks of a robot, simulated or real."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim_bridge.tasks import TaskContract


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What followed an applied action."""

    reward: float
    """Reward of this step; 0 on a robot that knows none."""
    terminated: bool
    """The task ended: success, fall or fault."""
    truncated: bool
    """The episode ended for another reason, such as its time limit."""


class Robot(Protocol):
    """Sensors and actuators under one contract."""

    @property
    def contract(self) -> TaskContract:
        """Names, units, limits and control period."""

    @property
    def neutral_action(self) -> NDArray[np.float32]:
        """(A,), the least harmful action within limits."""

    def reset(self, seed: int) -> None:
        """Start an episode; the same seed starts the same simulated episode."""

    def observe(self) -> NDArray[np.floating]:
        """(S,), the sensors now."""

    def apply(self, action: NDArray[np.float32]) -> StepResult:
        """Command the actuators with (A,) within limits, for one control period."""

    def close(self) -> None:
        """Release the robot."""
