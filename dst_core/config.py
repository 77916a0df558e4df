"""Every choice of a training run but the method's own, with its meaning and unit."""

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from dst_core.agent_config import AgentConfig, require, require_choices

MAX_SEED = 1999
OF_THE_CALL = ("out", "resume", "device", "video")


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
    """Directory of the run: configuration, checkpoint, metrics.jsonl, TensorBoard logs, videos."""
    perturb: tuple[str, ...] = ()
    """What disturbs the task, as name=scale in any order: actuation, observation, dynamics, friction, mass, gravity, dropout, delay."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks live; auto takes CUDA where there is one."""
    compile: Literal["auto", "off"] = "auto"
    """Compile dst's updates: auto does from 3000 updates on, where there is a C++ compiler, and keeps the code in ~/.cache/dst."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products in dst's updates: auto measures which is faster in runs of 3000 updates and more, and takes float32 in others."""
    threads: int = 1
    """Threads of torch on the CPU; more stall when another process wants a core. 0 measures, in runs of 3000 updates and more."""
    resume: bool = False
    """Continue the run in --out; every other choice but --steps, --device and --video must be as it was."""
    video: bool = False
    """Film the first episode of every evaluation: videos/step-N.mp4 in --out."""
    warmup_steps: int = 1000
    """First steps, with uniformly random actions; only the world model learns from them (TD3, which has none; 1000 to 5000 are usual)."""
    updates_per_step: int = 1
    """Updates per environment step (the paper uses 10, a CPU affords 1)."""
    batch: int = 256
    """Transitions per update (TD3, TQC)."""
    replay: int = 1_000_000
    """Transitions kept; the oldest are overwritten (TD3, TQC)."""
    exploration: float = 0.1
    """Standard deviation of exploration noise, in half action ranges (TD3, and the paper)."""
    evaluate_every: int = 2000
    """Steps between evaluations."""
    evaluation_episodes: int = 10
    """Episodes per evaluation, without exploration noise, on seeds that training never uses."""
    checkpoint_every: int = 5000
    """Steps between checkpoints; Ctrl-C saves one too."""
    forecast_updates: int = 2000
    """Updates of the evaluation critic, fitted without truncation to the finished actor: the law that is exported."""
    agent: AgentConfig = field(default_factory=AgentConfig)
    """The method's own choices."""

    def __post_init__(self) -> None:
        require_choices(self)
        require("threads", self.threads, "be at least 0", self.threads >= 0)
        require("seed", self.seed, f"lie in 0..{MAX_SEED}", 0 <= self.seed <= MAX_SEED)
        require("exploration", self.exploration, "be finite and not negative", 0 <= self.exploration < math.inf)
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
            require(name, getattr(self, name), "be at least 1", getattr(self, name) >= 1)
        require("updates_per_step", self.updates_per_step, "be at least 1", self.updates_per_step >= 1)
        require("replay", self.replay, f"hold at least one batch ({self.batch})", self.replay >= self.batch)
        require(
            "steps",
            self.steps,
            f"exceed warmup_steps ({self.warmup_steps}), whose actions are random",
            self.steps > self.warmup_steps,
        )
        require("steps", self.steps, f"fill at least one batch ({self.batch})", self.steps >= self.batch)

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
        """The resolved configuration, fit for JSON; without what is of the call and not of the run."""
        plain = dataclasses.asdict(self)
        for name in OF_THE_CALL:
            del plain[name]
        plain["perturb"] = list(self.perturb)
        return plain


def _require_fields(plain: dict[str, Any], kind: type[Any], *, absent: tuple[str, ...] = ()) -> None:
    wanted = {entry.name for entry in dataclasses.fields(kind)} - {*absent}
    for name in sorted(wanted ^ plain.keys()):
        raise TypeError(f"{name} is {'missing' if name in wanted else 'unknown'}")
