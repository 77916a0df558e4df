"""The risk dial: how an action is picked from candidates around the actor's, by what the served law says of each."""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from protos.codec import FloatArray
from server.errors import InvalidInputError

MOST_CANDIDATES = 256


class Rule(StrEnum):
    """By what."""

    ACTOR = "actor"
    """None: the actor's action."""
    BEST_MEAN = "best-mean"
    """The highest `return_mean`."""
    BEST_CVAR = "best-cvar"
    """The highest `return_cvar`: the mean of the worst returns."""


SCORES = {Rule.BEST_MEAN: "return_mean", Rule.BEST_CVAR: "return_cvar"}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What a client asks for."""

    rule: Rule = Rule.ACTOR
    candidates: int = 16
    """How many, the actor's action among them."""
    spread: float = 0.1
    """Standard deviation of the others around it, in half action ranges."""

    def __post_init__(self) -> None:
        """Raises InvalidInputError on values that mean nothing."""
        if not 2 <= self.candidates <= MOST_CANDIDATES:
            raise InvalidInputError(f"selection.candidates must lie in 2..{MOST_CANDIDATES}, got {self.candidates}")
        if not 0 < self.spread <= 1:
            raise InvalidInputError(
                f"selection.spread must lie above 0 and not above 1 half action ranges, got {self.spread}"
            )


ACTOR = Selection()


@dataclass(frozen=True, kw_only=True)
class Selected:
    """What was picked."""

    rule: Rule
    candidates: int
    index: int
    """0 is the actor's action."""
    gain: float
    """Score of the picked candidate less that of the actor's action, in units of the return."""


class Candidates:
    """The candidates around an action. Their offsets are fixed, so the same observation gives the same decision.

    Args:
        low: (A,) limits of the action.
        high: (A,)
        seed: of the offsets.
    """

    def __init__(self, low: FloatArray, high: FloatArray, *, seed: int) -> None:
        self._low, self._high = low, high
        with np.errstate(invalid="ignore"):
            self._half_range = (high - low) / 2
        normal = np.random.default_rng(seed).standard_normal((MOST_CANDIDATES, len(low)))
        normal[0] = 0
        self._offsets: FloatArray = normal.astype(np.float32)

    def check(self) -> None:
        """Raises InvalidInputError where an action channel has no limits, so that there is nothing to spread over."""
        if not np.isfinite(self._half_range).all():
            index = int(np.argmin(np.isfinite(self._half_range)))
            raise InvalidInputError(
                f"selection needs finite limits of every action channel, the one at index {index} has none; "
                "ask for the actor's action, or Assess candidates of your own"
            )

    def around(self, action: FloatArray, selection: Selection) -> FloatArray:
        """(C, A): the action (A,) itself first, the others around it within the limits."""
        offsets = self._offsets[: selection.candidates] * (np.float32(selection.spread) * self._half_range)
        return np.clip(action + offsets, self._low, self._high)


def pick(rule: Rule, scores: FloatArray) -> Selected:
    """The best of the scores (C,); the actor's action where none is better."""
    index = int(np.argmax(scores))
    gain = float(scores[index]) - float(scores[0])
    assert math.isfinite(gain)
    return Selected(rule=rule, candidates=len(scores), index=index, gain=gain)
