"""The method's own choices, each with its meaning, unit and source."""

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from dst_core.actor import Risk
from dst_core.critic import NoiseEntry
from dst_core.mmd import Estimator, Kernel
from dst_core.sobolev_loss import Distance
from dst_core.targets import TargetLaw, TargetSteps

Algorithm = Literal["dst", "td3", "tqc", "mage", "iqn", "mmd"]
WorldModel = Literal["cvae", "ensemble", "flow", "hybrid", "simulator"]
Sobolev = Literal["none", "action", "state", "full"]
BLOCKS: dict[Sobolev, tuple[str, ...]] = {
    "none": (),
    "action": ("action",),
    "state": ("state",),
    "full": ("action", "state"),
}


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """The agent. Values follow the paper (Debes and Tuytelaars, arXiv 2601.20071), or MAGE and TQC where it is silent."""

    algorithm: Algorithm = "dst"
    """How critics learn: dst, Distributional Sobolev Training (DST), or td3 (TD3), tqc (TQC), mage (MAGE), iqn (IQN), mmd (MMDQ)."""
    discount: float = 0.99
    """Discount factor per step, in (0, 1) (TD3)."""
    hidden: int = 256
    """Width of both hidden layers of actor, critics and world model (TD3)."""
    critics: int = 2
    """Critics learned side by side (2 in TD3 and DST, 5 in TQC); td3 and mage always have 2."""
    samples: int = 10
    """Return samples per state-action pair, predicted (N) and per target critic (M), of dst, mmd and iqn (DST)."""
    quantiles: int = 25
    """Quantiles per critic of tqc (TQC)."""
    target_steps: TargetSteps = "replayed"
    """Steps that targets of dst back up: replayed, with derivatives along noise inferred behind them (SVG), or imagined (DST)."""
    target_law: TargetLaw = "pooled"
    """Target law of dst: all critics' pooled, truncated (TQC, DST), or lesser, that of the critic with the lesser mean (DSAC-T)."""
    truncate: float = 0.1
    """Share of the largest of pooled target samples dropped against overestimation, in [0, 1), by dst, mmd, iqn and tqc (TQC, DST)."""
    sobolev: Sobolev = "action"
    """Gradients of the return that dst learns beside it: none, action (DST), state, or full, both (named by DST as open)."""
    distance: Distance = "mmd"
    """Distance of dst's laws: plain MMD, or MMD maximised over one-dimensional projections, for which the operator contracts (DST)."""
    estimator: Estimator = "unbiased"
    """Estimator of the MMD (Gretton): unbiased U-statistic, or biased V-statistic, which shrinks the learned spread."""
    kernel: Kernel = "multiquadric"
    """Kernel of the MMD: multiquadric (DST), or gaussian, whose bandwidth must be near 1 (Gretton)."""
    bandwidth: float = 100.0
    """Inverse length scale h of the kernel in standardised units (DST); at 100 the multiquadric is close to the energy distance."""
    gradient_weight: float = 1.0
    """Weight of gradient columns against the return column of dst, after both are standardised (this project; 1 is neutral)."""
    gradient_penalty: float = 5.0
    """Weight of the norm of the TD error's action gradient in mage, beside 1 for the TD error (MAGE)."""
    critic_noise: NoiseEntry = "layer-2"
    """Where noise enters the generative critic: second hidden layer, cheaper, or input, a larger class of laws (both this project)."""
    noise_size: int = 16
    """Numbers of Gaussian noise per return sample (DST)."""
    world_model: WorldModel = "cvae"
    """What imagines steps for dst and mage: cvae (DST), ensemble (PETS), flow (NSF), hybrid (this project: MuJoCo's step and a residual,
    for tasks of hinge and slide joints that observe their whole state: not Ant, not Reacher), or simulator (this project: PointMass)."""
    latent: int = 8
    """Latent numbers of the conditional VAE (DST)."""
    risk: Risk = "mean"
    """What the actor maximises: mean return (TD3), cvar, CVaR of the return (Rockafellar), or mean-std, less dispersion (this project)."""
    risk_level: float = 0.25
    """Share of the worst returns for cvar (Rockafellar), weight of the standard deviation for mean-std (this project)."""
    polyak: float = 0.005
    """Rate at which target networks follow, in (0, 1] (TD3)."""
    actor_delay: int = 2
    """Critic updates per actor update (TD3)."""
    learning_rate: float = 3e-4
    """Adam's step size for actor, critics and world model (TD3, TQC)."""
    critic_learning_rate: float | None = None
    """Adam's step size for the critics alone; as learning_rate unless given. Three to ten times that helps where critics lag (DDPG)."""
    max_gradient_norm: float = 10.0
    """Parameter gradients are scaled down to this norm (this project's guard against single bad batches)."""

    def __post_init__(self) -> None:
        require_choices(self)
        require("discount", self.discount, "lie in (0, 1)", 0 < self.discount < 1)
        require("truncate", self.truncate, "lie in [0, 1)", 0 <= self.truncate < 1)
        require("polyak", self.polyak, "lie in (0, 1]", 0 < self.polyak <= 1)
        require(
            "risk_level", self.risk_level, "lie in (0, 1] for cvar", self.risk != "cvar" or 0 < self.risk_level <= 1
        )
        require("risk_level", self.risk_level, "be finite and not negative", 0 <= self.risk_level < math.inf)
        for name in ("hidden", "critics", "quantiles", "noise_size", "latent", "actor_delay"):
            require(name, getattr(self, name), "be at least 1", getattr(self, name) >= 1)
        for name in ("bandwidth", "learning_rate", "critic_learning_rate", "max_gradient_norm"):
            value = getattr(self, name)
            if value is not None:
                require(name, value, "be positive and finite", value > 0 and math.isfinite(value))
        near = self.kernel != "gaussian" or self.bandwidth <= 10
        require(
            "bandwidth",
            self.bandwidth,
            "be at most 10 for the gaussian kernel, which sees nothing beyond a few 1 / h",
            near,
        )
        for name in ("gradient_weight", "gradient_penalty"):
            value = getattr(self, name)
            require(name, value, "be finite and not negative", 0 <= value < math.inf)
        require(
            "sobolev",
            self.sobolev,
            f"be none or action for {self.algorithm}, which learns no law of gradients through a differentiable world model (dst does)",
            self.algorithm == "dst" or self.sobolev in ("none", "action"),
        )
        single = self.algorithm in ("td3", "mage")
        require(
            "risk", self.risk, f"be mean for {self.algorithm}, which learns no law", self.risk == "mean" or not single
        )
        self._require_samples()

    def _require_samples(self) -> None:
        if self.algorithm in ("td3", "mage"):
            return
        name = "quantiles" if self.algorithm == "tqc" else "samples"
        count = getattr(self, name)
        least, reason = self._least_samples()
        require(name, count, f"be at least {least}: {reason}", count >= least)
        pooled, kept = self.critics * count, least if self.estimator == "unbiased" else 1
        require(
            "truncate",
            self.truncate,
            f"leave at least {kept} of the {pooled} target samples",
            pooled - int(self.truncate * pooled) >= kept,
        )

    def _least_samples(self) -> tuple[int, str]:
        served = " (so is the evaluation critic fitted)" if self.estimator == "biased" else ""
        needs = [(1, "to have something to compare")]
        if self.algorithm == "dst" and self.distance == "max-sliced-mmd":
            needs.append((4, f"the unbiased max-sliced distance{served} splits them into halves of at least 2"))
        elif self.algorithm == "dst" or (self.algorithm == "mmd" and self.estimator == "unbiased"):
            needs.append((2, f"the unbiased estimator{served} leaves pairs of one sample out"))
        if self.risk == "mean-std":
            needs.append((2, "one has no spread"))
        if self.risk == "cvar":
            share = self.risk_level
            needs.append((math.ceil(1 / share - 1e-9), f"the worst {share:g} of fewer is less than one of them"))
        return max(needs, key=lambda need: need[0])

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


def require_choices(config: object) -> None:
    """Refuse a configuration with a field that is none of the names its type lists, for instance one read from an edited file.

    Raises:
        ValueError: naming the field, the names and what came.
    """
    for name, kind in get_type_hints(type(config)).items():
        if get_origin(kind) is Literal:
            value, names = getattr(config, name), get_args(kind)
            require(name, value, f"be one of {', '.join(names)}", value in names)
