"""A training run in memory: task, agent, replay and random sources, and how they are kept on disk."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dst_core.agent import Agent
from dst_core.algorithms import generative_critic
from dst_core.checkpoint import load_checkpoint, load_config, load_optimiser, optimiser_tensors, save_checkpoint
from dst_core.config import TrainConfig
from dst_core.contract import plain_contract, require_same_contract
from dst_core.critic import GenerativeCritic
from dst_core.episode import Episode
from dst_core.errors import TrainingError
from dst_core.replay import Replay
from sim_bridge.tasks import TaskContract, describe_task, make_task


def choose_device(wanted: str) -> torch.device:
    """The device of `--device auto|cpu|cuda`.

    Raises:
        TrainingError: if CUDA is demanded and missing.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise TrainingError(
            "--device cuda needs a CUDA GPU and a CUDA build of torch, none was found; use --device auto or cpu"
        )
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def seeded_construction(seed: int, device: torch.device) -> Iterator[None]:
    """Networks built inside start from this seed and live on this device; torch's own random state is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
        torch.manual_seed(seed)
        yield


KEPT = (
    "step",
    "episodes",
    "warmup",
    "evaluations",
    "evaluation_due",
    "cpu_seconds",
    "early_warning",
    "metrics_size",
    "forecast",
    "execution",
    "updates",
    "exploration",
    "config",
    "contract",
    "device",
)
Purpose = Literal["evaluation", "forecast", "fresh critic", "critics"]
STREAMS: dict[Purpose, int] = {"evaluation": 1, "forecast": 2, "fresh critic": 3, "critics": 4}


@dataclass(kw_only=True)
class Run:
    """Everything a checkpoint holds."""

    config: TrainConfig
    contract: TaskContract
    agent: Agent
    replay: Replay
    generator: torch.Generator
    """Noise of updates and replay sampling, on the training device."""
    exploration: np.random.Generator
    """Noise of exploration and warm-up actions."""
    forecast: GenerativeCritic
    """The evaluation critic; meaningful while `progress['forecast']` is true: it was fitted to this very actor."""
    episode: Episode
    """The training episode under way."""
    progress: dict[str, Any]

    @classmethod
    def start(cls, config: TrainConfig, device: torch.device) -> "Run":
        """A fresh run.

        Raises:
            TaskError: if the task is unknown or does not fit.
        """
        env = make_task(config.env, perturbations=config.perturb)
        contract = describe_task(env)
        low = torch.tensor([channel.low for channel in contract.action], device=device)
        high = torch.tensor([channel.high for channel in contract.action], device=device)
        observation_size = len(contract.observation)
        with seeded_construction(config.seed, device), contextlib.closing(env):
            agent = Agent(config.agent, action_low=low, action_high=high, observation_size=observation_size, env=env)
            forecast = generative_critic(config.agent, observation=agent.observation, action=agent.action)
        return cls(
            config=config,
            contract=contract,
            agent=agent,
            replay=Replay(
                capacity=min(config.replay, config.steps),
                observation_size=observation_size,
                action_size=len(contract.action),
                device=device,
            ),
            generator=torch.Generator(device).manual_seed(config.seed),
            exploration=np.random.default_rng([config.seed, 1]),
            forecast=forecast,
            episode=Episode(),
            progress={
                "step": 0,
                "episodes": 0,
                "warmup": {"rewards": [], "ends": []},
                "evaluations": [],
                "evaluation_due": True,
                "cpu_seconds": 0.0,
                "early_warning": {},
                "metrics_size": 0,
                "forecast": False,
                "critics": {},
                "execution": {},
            },
        )

    @property
    def not_finite(self) -> tuple[str, ...]:
        """Names of the parameters of agent and evaluation critic that hold a number that is not finite."""
        parameters = [
            *self.agent.named_parameters(),
            *((f"forecast.{name}", parameter) for name, parameter in self.forecast.named_parameters()),
        ]
        return tuple(name for name, parameter in parameters if not parameter.isfinite().all())

    def noise(self, purpose: Purpose) -> torch.Generator:
        """Noise of one purpose at this step: drawing it leaves the run's own as it was, and it can be drawn again.

        Returns:
            A generator on the training device that depends on seed, step and purpose alone.
        """
        entropy = [self.config.seed, self.progress["step"]]
        return _generator(self.replay.device, np.random.SeedSequence(entropy, spawn_key=(STREAMS[purpose],)))

    def fresh_critic(self) -> GenerativeCritic:
        """An evaluation critic that has learned nothing: parameters from seed and step, scales of the data as the agent has them."""
        agent = self.agent
        with seeded_construction(self.noise("fresh critic").initial_seed(), self.replay.device):
            critic = generative_critic(self.config.agent, observation=agent.observation, action=agent.action)
        critic.return_scale.copy_(agent.critics.critic.return_scale)
        return critic

    def save(self, directory: Path) -> None:
        """Write the checkpoint.

        Raises:
            TrainingError: if it cannot be written; the previous one is then as it was.
        """
        tensors = {f"agent.{name}": value for name, value in self.agent.state_dict().items()}
        tensors |= {f"forecast.{name}": value for name, value in self.forecast.state_dict().items()}
        tensors |= {f"replay.{name}": value for name, value in self.replay.state().items()}
        tensors |= {f"episode.{name}": value for name, value in self.episode.state().items()}
        for name, optimiser in self.agent.optimisers.items():
            tensors |= optimiser_tensors(optimiser, f"optimiser.{name}")
        tensors["generator"] = self.generator.get_state()
        progress = {
            **self.progress,
            "updates": self.agent.updates,
            "exploration": self.exploration.bit_generator.state,
            "config": self.config.to_json(),
            "contract": plain_contract(self.contract),
            "device": self.replay.device.type,
        }
        save_checkpoint(directory, tensors, progress)

    def restore(self, directory: Path) -> None:
        """Take over a checkpoint of the same task and configuration, be it of another device.

        The episode under way has to be reached again in the task (`Episode.reach_again`).
        Noise goes on where it was on the device it was drawn on; on another it starts anew from the seed and the number of updates.

        Raises:
            TrainingError: if the checkpoint is damaged or belongs to another version, task or configuration, or the task changed since.
        """
        device = self.replay.device
        tensors, progress = load_checkpoint(directory, device)
        if absent := [name for name in KEPT if name not in progress]:
            raise TrainingError(
                f"the checkpoint in {directory} is of another version: {', '.join(absent)} missing; "
                "continue it with the version that wrote it, or train again into another --out"
            )
        _require_same_run(directory, progress.pop("config"), self.config.to_json())
        require_same_contract(
            progress.pop("contract"), plain_contract(self.contract), environment=self.contract.environment
        )
        try:
            self.agent.load_state_dict(_below(tensors, "agent"))
            self.forecast.load_state_dict(_below(tensors, "forecast"))
            self.replay.load_state(_below(tensors, "replay"))
            self.episode.load_state(_below(tensors, "episode"))
            for name, optimiser in self.agent.optimisers.items():
                load_optimiser(optimiser, f"optimiser.{name}", tensors)
            self.agent.updates = progress.pop("updates")
            self.exploration.bit_generator.state = progress.pop("exploration")
            if progress.pop("device") == device.type:
                self.generator.set_state(tensors["generator"].cpu())
            else:
                entropy = np.random.SeedSequence([self.config.seed, self.agent.updates])
                self.generator = _generator(device, entropy)
        except (RuntimeError, KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"the checkpoint in {directory} does not fit this task: {error}; train again into another --out"
            ) from error
        self.progress = {"critics": {}, **progress}


def load_run(directory: Path, device: torch.device | None = None) -> Run:
    """A finished run, on the CPU unless another device is given.

    Raises:
        TrainingError: if there is none, it is damaged, it is of another algorithm than dst, or it was interrupted before its last step was
            done and its evaluation critic fitted.
    """
    plain = load_config(directory)
    try:
        config = TrainConfig.from_json(plain, out=directory)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    if config.agent.algorithm != "dst":
        raise TrainingError(
            f"the run in {directory} was trained with {config.agent.algorithm}, which learns no law of the return and its gradients "
            "to serve; train with --agent.algorithm dst to export"
        )
    run = Run.start(config, device or torch.device("cpu"))
    run.restore(directory)
    if run.progress["step"] < config.steps or not run.progress["forecast"]:
        raise TrainingError(
            f"the run in {directory} stopped at step {run.progress['step']} of {config.steps} and is not finished; "
            "finish it with the same dst-train command and --resume"
        )
    return run


def _generator(device: torch.device, entropy: np.random.SeedSequence) -> torch.Generator:
    return torch.Generator(device).manual_seed(int(entropy.generate_state(1, np.uint64)[0]))


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix + "."): value for name, value in tensors.items() if name.startswith(prefix + ".")}


def _require_same_run(directory: Path, kept: dict[str, Any], asked: dict[str, Any]) -> None:
    different = [name for name in asked if name != "steps" and kept.get(name) != asked[name]]
    if different:
        lines = "; ".join(f"{name} was {kept.get(name)}, now {asked[name]}" for name in different)
        raise TrainingError(
            f"the checkpoint in {directory} is of another run: {lines}. Repeat the call it was started with, or choose another --out"
        )
    if kept["steps"] > asked["steps"]:
        raise TrainingError(
            f"the run in {directory} was asked for {kept['steps']} steps; --steps {asked['steps']} would shorten it"
        )
