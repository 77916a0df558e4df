"""Every choice of a training run, with its meaning, unit and source."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dst_core.actor import Risk
from dst_core.sobolev_loss import Distance

Sobolev = Literal["none", "action", "state", "full"]
MAX_SEED = 1999
OF_THE_CALL = ("out", "resume", "device")

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
        _require("discount", self.discount, "lie in (0, 1)", 0 < self.discount < 1)
        _require("truncate", self.truncate, "lie in [0, 1)", 0 <= self.truncate < 1)
        _require(
            "samples",
            self.samples,
            "be at least 2: the unbiased estimator leaves pairs of one sample out",
            self.samples >= 2,
        )
        kept = 2 * self.samples - int(self.truncate * 2 * self.samples)
        _require("truncate", self.truncate, f"leave at least 2 of the {2 * self.samples} target samples", kept >= 2)
        _require("polyak", self.polyak, "lie in (0, 1]", 0 < self.polyak <= 1)
        _require(
            "risk_level", self.risk_level, "lie in (0, 1] for cvar", self.risk != "cvar" or 0 < self.risk_level <= 1
        )
        _require("risk_level", self.risk_level, "be finite and not negative", 0 <= self.risk_level < math.inf)
        for name in ("hidden", "noise_size", "latent", "actor_delay"):
            _require(name, getattr(self, name), "be at least 1", getattr(self, name) >= 1)
        for name in ("bandwidth", "learning_rate", "max_gradient_norm"):
            value = getattr(self, name)
            _require(name, value, "be positive and finite", value > 0 and math.isfinite(value))
        _require(
            "gradient_weight", self.gradient_weight, "be finite and not negative", 0 <= self.gradient_weight < math.inf
        )

    @property
    def blocks(self) -> tuple[str, ...]:
        """Gradient blocks stacked below the return."""
        return BLOCKS[self.sobolev]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run."""

    env: str
    """Gymnasium id of a task with flat Box observations and actions."""
    steps: Annotated[int, tyro.conf.arg(metavar="N")] = 20_000
    """Environment steps in all."""
    seed: int = 0
    """Seed of everything random, 0 to 1999; evaluation uses seeds that training never does."""
    out: Path = Path("runs/latest")
    """Directory of the run: configuration, checkpoint, TensorBoard logs, evaluations."""
    perturb: tuple[str, ...] = ()
    """Noise put on the task, as name=scale: actuation, observation, dynamics."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks live; auto takes CUDA where there is one."""
    resume: bool = False
    """Continue the run in --out; every other choice but --steps and --device must be as it was."""
    warmup_steps: int = 1000
    """First steps with uniformly random actions and no updates."""
    updates_per_step: int = 1
    """Updates per environment step (the paper uses 10, a CPU affords 1)."""
    batch: int = 256
    """Transitions per update."""
    replay: int = 1_000_000
    """Transitions kept; the oldest are overwritten."""
    exploration: float = 0.1
    """Standard deviation of exploration noise, in half action ranges."""
    evaluate_every: int = 2000
    """Steps between evaluations."""
    evaluation_episodes: int = 10
    """Episodes per evaluation, without exploration noise, on held-out seeds."""
    checkpoint_every: int = 5000
    """Steps between checkpoints; Ctrl-C saves one too."""
    forecast_updates: int = 2000
    """Updates of the evaluation critic, fitted without truncation to the finished actor: the law that is exported."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """The method's own choices."""

    def __post_init__(self) -> None:
        _require("seed", self.seed, f"lie in 0..{MAX_SEED}", 0 <= self.seed <= MAX_SEED)
        _require("exploration", self.exploration, "be finite and not negative", 0 <= self.exploration < math.inf)
        for name in (
            "steps",
            "batch",
            "replay",
            "evaluate_every",
            "evaluation_episodes",
            "checkpoint_every",
            "warmup_steps",
            "forecast_updates",
        ):
            _require(name, getattr(self, name), "be at least 1", getattr(self, name) >= 1)
        _require("updates_per_step", self.updates_per_step, "be at least 1", self.updates_per_step >= 1)
        _require("replay", self.replay, f"hold at least one batch ({self.batch})", self.replay >= self.batch)
        _require(
            "steps",
            self.steps,
            f"exceed warmup_steps ({self.warmup_steps}), which collect experience without learning from it",
            self.steps > self.warmup_steps,
        )
        _require("steps", self.steps, f"fill at least one batch ({self.batch})", self.steps >= self.batch)

    @classmethod
    def from_json(cls, plain: dict[str, Any], *, out: Path) -> "TrainConfig":
        """The configuration that `to_json` gave.

        Raises:
            ValueError: if a field is unknown, missing or out of its range.
        """
        try:
            _require_fields(plain, cls, absent=OF_THE_CALL)
            _require_fields(plain["agent"], AgentConfig)
            agent = AgentConfig(**plain["agent"])
            return cls(**{**plain, "agent": agent, "perturb": tuple(plain["perturb"]), "out": out})
        except (TypeError, AttributeError) as error:
            raise ValueError(
                f"the configuration of the run in {out} is of another version or was edited: {error}"
            ) from error

    def to_json(self) -> dict[str, object]:
        """The resolved configuration, fit for JSON; `out`, `resume` and `device` are of the call, not of the run."""
        plain = dataclasses.asdict(self)
        for name in OF_THE_CALL:
            del plain[name]
        plain["perturb"] = list(self.perturb)
        return plain


def _require_fields(plain: dict[str, Any], kind: type[Any], *, absent: tuple[str, ...] = ()) -> None:
    wanted = {entry.name for entry in dataclasses.fields(kind)} - {*absent}
    for name in sorted(wanted ^ plain.keys()):
        raise TypeError(f"{name} is {'missing' if name in wanted else 'unknown'}")


def _require(name: str, value: object, requirement: str, holds: bool) -> None:
    if not holds:
        raise ValueError(f"{name} must {requirement}, got {value}")
