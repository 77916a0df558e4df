"""The method's own choices, each with its meaning, unit and source."""

import math
from dataclasses import dataclass
from typing import Literal

from dst_core.actor import Risk
from dst_core.sobolev_loss import Distance

Sobolev = Literal["none", "action", "state", "full"]
BLOCKS: dict[Sobolev, tuple[str, ...]] = {
    "none": (),
    "action": ("action",),
    "state": ("state",),
    "full": ("action", "state"),
}


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The DST agent. Values follow the paper (arXiv 2601.20071), or MAGE and TQC where the paper is silent."""

    discount: float = 0.99
    """Discount factor per step, in (0, 1)."""
    hidden: int = 256
    """Width of both hidden layers of actor, critics and world model."""
    noise_size: int = 16
    """Numbers of Gaussian noise per return sample."""
    latent: int = 8
    """Latent numbers of the world model."""
    samples: int = 10
    """Return samples per state-action pair, predicted (N) and per target critic (M)."""
    truncate: float = 0.1
    """Share of the largest target samples dropped against overestimation, in [0, 1) (TQC)."""
    sobolev: Sobolev = "action"
    """Gradients of the return learned beside it: none, action, state, or full (both)."""
    distance: Distance = "mmd"
    """Distance between predicted and target law: plain MMD, or MMD maximised over one-dimensional projections."""
    bandwidth: float = 100.0
    """Inverse length scale h of the multiquadric kernel, in standardised units."""
    gradient_weight: float = 1.0
    """Weight of gradient columns against the return column, after both are standardised."""
    risk: Risk = "mean"
    """What the actor maximises: mean return, CVaR of the return, or mean minus dispersion."""
    risk_level: float = 0.25
    """Share of the worst returns for `cvar`, weight of the standard deviation for `mean-std`."""
    polyak: float = 0.005
    """Rate at which target networks follow, in (0, 1]."""
    actor_delay: int = 2
    """Critic updates per actor update (TD3)."""
    learning_rate: float = 3e-4
    """Adam's step size for actor, critics and world model."""
    max_gradient_norm: float = 10.0
    """Parameter gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        require("discount", self.discount, "lie in (0, 1)", 0 < self.discount < 1)
        require("truncate", self.truncate, "lie in [0, 1)", 0 <= self.truncate < 1)
        require(
            "samples",
            self.samples,
            "be at least 2: the unbiased estimator leaves pairs of one sample out",
            self.samples >= 2,
        )
        kept = 2 * self.samples - int(self.truncate * 2 * self.samples)
        require("truncate", self.truncate, f"leave at least 2 of the {2 * self.samples} target samples", kept >= 2)
        require("polyak", self.polyak, "lie in (0, 1]", 0 < self.polyak <= 1)
        require(
            "risk_level", self.risk_level, "lie in (0, 1] for cvar", self.risk != "cvar" or 0 < self.risk_level <= 1
        )
        require("risk_level", self.risk_level, "be finite and not negative", 0 <= self.risk_level < math.inf)
        for name in ("hidden", "noise_size", "latent", "actor_delay"):
            require(name, getattr(self, name), "be at least 1", getattr(self, name) >= 1)
        for name in ("bandwidth", "learning_rate", "max_gradient_norm"):
            value = getattr(self, name)
            require(name, value, "be positive and finite", value > 0 and math.isfinite(value))
        require(
            "gradient_weight", self.gradient_weight, "be finite and not negative", 0 <= self.gradient_weight < math.inf
        )

    @property
    def blocks(self) -> tuple[str, ...]:
        """Gradient blocks stacked below the return."""
        return BLOCKS[self.sobolev]


def require(name: str, value: object, requirement: str, holds: bool) -> None:
    """Refuse a choice.

    Raises:
        ValueError: unless it holds, naming the choice, the requirement and what came.
    """
    if not holds:
        raise ValueError(f"{name} must {requirement}, got {value}")
