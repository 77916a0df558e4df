"""The guard between decision and actuator: a state machine that never lets a bad action through.

    NOMINAL ─ late, stale, invalid, out of limits, rejected ─▶ HOLD ─ still bad after the hold timeout ─▶ STOP
       ▲                                                        │                              (until re-armed)
       └──────────────────── a good decision ◀──────────────────┘

It reads no clock and knows no network: time and proposals are handed in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from sim_bridge.errors import DriveConfigError
from sim_bridge.tasks import Channel

LIMIT_TOLERANCE = 1e-6  # of the range: what float32 rounding on the way may add to an action at its limit


class GuardState(Enum):
    """What the guard does with the proposed actions."""

    NOMINAL = "nominal"
    HOLD = "hold"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """When the guard gives up."""

    hold_timeout_s: float = 0.5
    """How long the last safe action is held without a good decision before the robot stops, in seconds."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.hold_timeout_s) and self.hold_timeout_s >= 0.0):
            raise DriveConfigError(f"hold_timeout_s must be a finite number >= 0, got {self.hold_timeout_s}")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What one tick offers to the actuators."""

    action: Sequence[float] | None
    """(A,) in the contract's units, or None where no decision came."""
    valid_until_ns: int
    """Robot clock; the action must not be applied later."""
    problem: str = ""
    """Why there is no action."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What goes to the actuators."""

    action: NDArray[np.float32]
    """(A,), always finite and within limits."""
    state: GuardState
    """The state after this tick."""
    reason: str
    """Why the state is not NOMINAL; empty otherwise."""


class Guard:
    """Decides per tick what reaches the actuators.

    Args:
        action: channels of the action vector with finite limits.
        neutral_action: (A,), applied when stopped, and held where no decision was ever good.
        config: timeouts.

    Raises:
        DriveConfigError: if the neutral action is not within the limits.
    """

    def __init__(self, action: Sequence[Channel], neutral_action: NDArray[np.float32], config: GuardConfig) -> None:
        self._channels = tuple(action)
        self._low = np.array([channel.low for channel in action], np.float32)
        self._high = np.array([channel.high for channel in action], np.float32)
        self._neutral = np.array(neutral_action, np.float32)
        self._hold_timeout_ns = round(config.hold_timeout_s * 1e9)
        problem = self._problem_of_action(self._neutral)
        if problem:
            raise DriveConfigError(f"neutral action must be safe, got one with {problem}")
        self.rearm()

    def rearm(self) -> None:
        """Return to NOMINAL from any state and forget the last safe action: a person, or a new episode, says so."""
        self.state = GuardState.NOMINAL
        self.reason = ""
        self._last_safe = self._neutral
        self._hold_since_ns = 0

    def update(self, now_ns: int, proposal: Proposal) -> Verdict:
        """Advance by one tick at the monotonic time `now_ns`."""
        if self.state is not GuardState.STOP:
            problem = self._problem(now_ns, proposal)
            if not problem:
                self.state, self.reason = GuardState.NOMINAL, ""
                self._last_safe = np.clip(np.asarray(proposal.action, np.float32), self._low, self._high)
            else:
                self._hold_or_stop(now_ns, problem)
        action = self._neutral if self.state is GuardState.STOP else self._last_safe
        return Verdict(action=action.copy(), state=self.state, reason=self.reason)

    def _hold_or_stop(self, now_ns: int, problem: str) -> None:
        if self.state is GuardState.NOMINAL:
            self.state, self._hold_since_ns = GuardState.HOLD, now_ns
        held_ns = now_ns - self._hold_since_ns
        self.reason = problem
        if held_ns >= self._hold_timeout_ns:
            self.state = GuardState.STOP
            self.reason = f"held for {held_ns / 1e6:.0f} ms without a good decision; {problem}"

    def _problem(self, now_ns: int, proposal: Proposal) -> str:
        if proposal.action is None:
            return proposal.problem or "no decision"
        if now_ns > proposal.valid_until_ns:
            return f"stale: the decision was valid until {(now_ns - proposal.valid_until_ns) / 1e6:.1f} ms ago"
        return self._problem_of_action(np.asarray(proposal.action, np.float32))

    def _problem_of_action(self, action: NDArray[np.float32]) -> str:
        size = len(self._channels)
        if action.shape != (size,):
            return f"invalid: action must have shape ({size},), got {action.shape}"
        if not np.isfinite(action).all():
            index = int(np.argmin(np.isfinite(action)))
            return f"invalid: action {self._channels[index].name!r} must be finite, got {action[index]}"
        slack = LIMIT_TOLERANCE * (self._high - self._low)
        outside = (action < self._low - slack) | (action > self._high + slack)
        if outside.any():
            index = int(np.argmax(outside))
            return (
                f"out of limits: action {self._channels[index].name!r} must be within "
                f"[{self._low[index]:g}, {self._high[index]:g}], got {action[index]:g}"
            )
        return ""
