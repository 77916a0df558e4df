"""Early warning of critics that diverge: how often their samples leave the returns that the rewards seen allow."""

from typing import Any

OUT_OF_RANGE_LIMIT = 0.05
RECOVERED = 0.5  # of the limit: a share that hovers about the limit warns once
MEMORY = 100  # shares over which the running mean forgets

CURE = "lower --agent.learning-rate, and --agent.critic-learning-rate where it is given, or raise --agent.truncate"


class EarlyWarning:
    """Running mean of the share of return samples out of range, and whether it was warned of.

    The returns of a task lie within [r_min, r_max] / (1 - discount). Targets of dst and mage are clamped there, which keeps a
    critic that overshoots from running away; a share of its samples beyond 5 % means that the clamp, not the task, decides what is learned.
    Nothing holds the targets of the other algorithms: there it means that the critic extrapolates.

    Args:
        state: what `state` gave, or an empty dictionary.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self._share: float = state.get("share", 0.0)
        self._warned: bool = state.get("warned", False)

    def state(self) -> dict[str, Any]:
        """For the checkpoint, fit for JSON."""
        return {"share": self._share, "warned": self._warned}

    def update(self, share: float) -> str | None:
        """Take in one more share.

        Returns:
            A line for the user when the running mean passes 5 %, and again only after it fell below half of that.
        """
        self._share += (share - self._share) / MEMORY
        if self._warned:
            self._warned = self._share >= RECOVERED * OUT_OF_RANGE_LIMIT
            return None
        if self._share <= OUT_OF_RANGE_LIMIT:
            return None
        self._warned = True
        return (
            f"{self._share:.0%} of the critics' samples lie outside the returns that the rewards seen allow, "
            f"an early sign of divergence; {CURE}"
        )
