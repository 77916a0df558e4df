"""dst-export: turn a training run into a policy bundle (format: docs/bundle.md), checked before it is published."""

import copy
import hashlib
import json
import re
import signal
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from dst_core.card import policy_card
from dst_core.checkpoint import load_config
from dst_core.config import TrainConfig
from dst_core.errors import ExportError, TrainingError
from dst_core.evaluate import evaluation_seeds
from dst_core.graphs import PolicyGraph, UncertaintyGraph, baked_noise, export_graph
from dst_core.parity import check_gradients, check_graph
from dst_core.run import Run
from dst_core.summary import Summarise, Summary
from sim_bridge.tasks import Channel, TaskError

FORMAT_VERSION = 1
RETURN_LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
NORM_LEVELS = (0.1, 0.5, 0.9)
CVAR_LEVEL = 0.1
NOISE_SEED = 0
REPLAYED_PROBES = 54
GOLDEN_ROWS = 16
NAME_LENGTH = 64
TOLERANCE = {"relative": 1e-3, "absolute": 1e-3}
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "gymnasium", "mujoco", "numpy")


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a finished training run as an immutable policy bundle.

    Examples:
      dst-export runs/pendulum --out bundles/pendulum
      dst-export runs/pendulum --out bundles/pendulum-128 --name pendulum --samples 128
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Directory that dst-train wrote."""
    out: Path
    """Directory of the bundle; must not exist yet, a bundle never changes."""
    name: str | None = None
    """Policy name that clients ask for; the task's id in lower case unless given."""
    samples: int = 32
    """Joint samples behind every summary, shared evenly by the critics."""

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", self.name):
            raise ValueError(
                f"name must be up to 64 lower-case letters, digits, '.', '_' or '-', starting with a letter or digit, got {self.name!r}"
            )
        if not 4 <= self.samples <= 4096:
            raise ValueError(f"samples must lie in 4..4096, got {self.samples}")


def export(config: ExportConfig) -> dict[str, Any]:
    """Write the bundle.

    Returns:
        Its manifest.

    Raises:
        TrainingError: if the run cannot be read or is not finished.
        ExportError: if the bundle exists, the samples do not divide among the critics, or a graph does not give what torch gives.
        OSError: if the bundle cannot be written; nothing is left of it.
    """
    if config.out.exists():
        raise ExportError(f"{config.out} exists and a bundle never changes; choose another --out or remove it")
    run = load_run(config.run)
    _require_even_shares(config.samples, critics=run.forecast.members)
    actor = copy.deepcopy(run.agent.actor).eval()
    critic = copy.deepcopy(run.forecast).eval()
    noise = baked_noise(critic, count=config.samples, seed=NOISE_SEED)
    summarise = Summarise(
        count=config.samples, return_levels=RETURN_LEVELS, cvar_level=CVAR_LEVEL, norm_levels=NORM_LEVELS
    )
    uncertainty = UncertaintyGraph(critic, noise, summarise).eval()
    policy = PolicyGraph(actor, uncertainty).eval()
    probes = _probes(run)

    config.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out.parent, prefix=".export-") as scratch:
        directory = Path(scratch) / "bundle"
        directory.mkdir()
        with torch.no_grad():
            actions = actor(probes)
        graphs: list[tuple[str, torch.nn.Module, dict[str, Tensor], list[str]]] = [
            ("actor.onnx", actor, {"observation": probes}, ["action"]),
            ("uncertainty.onnx", uncertainty, {"observation": probes, "action": actions}, list(Summary._fields)),
            ("policy.onnx", policy, {"observation": probes}, ["action", *Summary._fields]),
        ]
        for name, graph, inputs, outputs in graphs:
            path = directory / name
            export_graph(graph, inputs, outputs, path)
            check_graph(path, graph, inputs, outputs)
        check_gradients(directory / "uncertainty.onnx", uncertainty, probes, actions)
        np.savez(directory / "golden.npz", allow_pickle=False, **_golden(policy, probes))
        manifest = _manifest(config, run)
        (directory / "README.md").write_text(policy_card(manifest), encoding="utf-8")
        manifest["files"] = {path.name: _sha256(path.read_bytes()) for path in sorted(directory.iterdir())}
        manifest["version"] = _sha256(_canonical(manifest))
        text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
        (directory / "manifest.json").write_text(text + "\n", encoding="utf-8")
        directory.rename(config.out)
    return manifest


def _require_even_shares(samples: int, *, critics: int) -> None:
    """At least two samples for each critic, whose noise is standardised over them, and as many for one as for another."""
    share = max(-(-samples // critics), 2)
    if samples != share * critics:
        raise ExportError(
            f"samples must be a multiple of the run's {critics} critics, at least {2 * critics}, got {samples}; "
            f"use --samples {share * critics}"
        )


def load_run(directory: Path) -> Run:
    """A finished run, on the CPU.

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
    run = Run.start(config, torch.device("cpu"))
    run.restore(directory)
    if run.progress["step"] < config.steps or not run.progress["forecast"]:
        raise TrainingError(
            f"the run in {directory} stopped at step {run.progress['step']} of {config.steps} and is not finished; "
            "finish it with the same dst-train command and --resume"
        )
    return run


def _probes(run: Run) -> Tensor:
    """Observations (up to 64, S) for checks and golden data: replayed ones, and ones at and beyond the range of the data."""
    generator = torch.Generator().manual_seed(0)
    replayed = run.replay.sample(min(REPLAYED_PROBES, len(run.replay)), generator).observation
    standardiser = run.agent.observation
    corners = torch.stack([standardiser.low, standardiser.high])
    wide = standardiser.restore(4 * torch.randn(8, len(standardiser.mean), generator=generator))
    return torch.cat([replayed[:12], corners, wide[:2], replayed[12:], wide[2:]])


def _golden(policy: PolicyGraph, probes: Tensor) -> dict[str, NDArray[np.float32]]:
    """The probes whose gradient samples are clearest of a sign, with the outputs: a share of signs must not hang on rounding."""
    with torch.no_grad():
        size = policy(probes)[-1].abs().flatten(1)
        clearest = (size.amin(1) / size.amax(1).clamp_min(1e-12)).topk(min(GOLDEN_ROWS, len(probes))).indices
        outputs = policy(probes[clearest])
    named = zip(["action", *Summary._fields], outputs, strict=True)
    return {"observation": probes[clearest].numpy(), **{name: value.numpy() for name, value in named}}


def _manifest(config: ExportConfig, run: Run) -> dict[str, Any]:
    """Everything but `files` and `version`."""
    contract, agent, evaluations = run.contract, run.agent, run.progress["evaluations"]
    first, last = evaluations[0], evaluations[-1]
    return {
        "format_version": FORMAT_VERSION,
        "name": config.name or policy_name(run.config.env),
        "task": {"environment": run.config.env, "perturbations": list(run.config.perturb)},
        "observation": [_channel(channel) for channel in contract.observation],
        "action": [_channel(channel) for channel in contract.action],
        "control_period_s": contract.control_period_s,
        "normalisation": {
            "observation_mean": agent.observation.mean.tolist(),
            "observation_std": agent.observation.std.tolist(),
        },
        "observed_range": {"low": agent.observation.low.tolist(), "high": agent.observation.high.tolist()},
        "uncertainty": {
            "discount": run.config.agent.discount,
            "sample_count": config.samples,
            "noise_seed": NOISE_SEED,
            "return_quantile_levels": list(RETURN_LEVELS),
            "cvar_level": CVAR_LEVEL,
            "gradient_norm_levels": list(NORM_LEVELS),
        },
        "training": {
            "algorithm": "Distributional Sobolev Training",
            "steps": run.progress["step"],
            "seed": run.config.seed,
            "configuration": run.config.to_json(),
        },
        "libraries": {name: found for name in LIBRARIES if (found := _installed(name)) is not None},
        "evaluation": {
            "episodes": len(last["returns"]),
            "seeds": list(evaluation_seeds(len(last["returns"]))),
            "return_mean": last["return_mean"],
            "return_std": last["return_std"],
            "return_min": last["return_min"],
            "untrained_return_mean": first["return_mean"],
        },
        "calibration": None,
        "tolerance": TOLERANCE,
    }


def policy_name(environment: str) -> str:
    """The name a policy has unless it is given one: the task's id in the characters and the length that names may have."""
    return re.sub(r"[^a-z0-9._-]", "-", environment.lower()).lstrip("._-")[:NAME_LENGTH]


def _channel(channel: Channel) -> dict[str, Any]:
    plain = asdict(channel)
    return {**plain, **{limit: plain[limit] if np.isfinite(plain[limit]) else None for limit in ("low", "high")}}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def _canonical(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Entry point of `dst-export`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        config = tyro.cli(ExportConfig, prog="dst-export")
        with Console(stderr=True).status("exporting and checking three graphs"):
            manifest = export(config)
    except (ExportError, TrainingError, TaskError, ValueError) as error:
        print(f"dst-export: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(
            f"dst-export: {error}; choose an --out that can be written and has room. Nothing was exported",
            file=sys.stderr,
        )
        sys.exit(2)
    except SystemExit as ended:
        if ended.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            print("dst-export: interrupted; nothing was exported", file=sys.stderr)
        raise
    print(
        f"exported {manifest['name']} version {manifest['version'][:12]} to {config.out}; serve with dst-serve {config.out}"
    )


if __name__ == "__main__":
    main()
