"""dst-export: turn a training run into a policy bundle (format: docs/bundle.md), checked before it is published."""

import copy
import json
import re
import signal
import sys
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from dst_core.actor import Actor
from dst_core.calibration.calibrate import calibrate
from dst_core.calibration.result import CALIBRATION_FILE, Calibration, CalibrationConfig
from dst_core.card import Record, card_json, policy_card
from dst_core.card_figures import calibration_figure, warning_figure
from dst_core.errors import CalibrationError, ExportError, TrainingError
from dst_core.graphs import (
    BATCH,
    CANDIDATES,
    CandidatesGraph,
    Correction,
    Outputs,
    PolicyGraph,
    UncertaintyGraph,
    export_graph,
)
from dst_core.manifest import describe, write_sealed
from dst_core.parity import check_gradients, check_graph
from dst_core.run import Run, load_run
from dst_core.served_law import fingerprint, served_law
from sim_bridge.tasks import TaskError

REPLAYED_PROBES = 54
GOLDEN_ROWS = 16
CANDIDATE_PROBES = 5
AXES = {"observation": (BATCH,), "action": (BATCH, CANDIDATES)}


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a finished training run as an immutable policy bundle.

    It is calibrated on held-out episodes first, unless dst-calibrate has done it for the very same actor and law.

    Examples:
      dst-export runs/pendulum --out bundles/pendulum
      dst-export runs/pendulum --out bundles/pendulum-128 --name pendulum --samples 128
      dst-export runs/hopper --out bundles/hopper --return-threshold 100 --observation-gradient
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Directory that dst-train wrote."""
    out: Path
    """Directory of the bundle; must not exist yet, a bundle never changes."""
    name: str | None = None
    """Policy name that clients ask for; the task's id in lower case unless given."""
    samples: int = 32
    """Joint samples behind every summary, shared evenly by the critics."""
    return_threshold: float | None = None
    """Discounted return whose shortfall has its probability served; exceeded by 95 % of the law in the training data unless given."""
    observation_gradient: bool = False
    """Also serve the mean gradient of the return by the observation: which sensor matters now."""
    uncalibrated: bool = False
    """Leave calibration out: no corrected quantiles, no thresholds of the signals, and the policy card says so."""

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", self.name):
            raise ValueError(
                f"name must be up to 64 lower-case letters, digits, '.', '_' or '-', starting with a letter or digit, got {self.name!r}"
            )
        if not 4 <= self.samples <= 4096:
            raise ValueError(f"samples must lie in 4..4096, got {self.samples}")
        if self.return_threshold is not None and not np.isfinite(self.return_threshold):
            raise ValueError(f"return_threshold must be a finite number, got {self.return_threshold}")


def export(config: ExportConfig, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write the bundle.

    Args:
        config: what to export.
        progress: shows calibration and graphs.

    Returns:
        Its manifest.

    Raises:
        TrainingError: if the run cannot be read or is not finished.
        ExportError: if the bundle exists, the samples do not divide among the critics, or a graph does not give what torch gives.
        CalibrationError: if the task or the law cannot be calibrated.
        OSError: if the bundle cannot be written; nothing is left of it.
    """
    if config.out.exists():
        raise ExportError(f"{config.out} exists and a bundle never changes; choose another --out or remove it")
    progress = Progress(console=Console(quiet=True)) if progress is None else progress
    run = load_run(config.run)
    law = served_law(run, samples=config.samples, return_threshold=config.return_threshold)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    calibration = None if config.uncalibrated else _calibration(config.run, run, law, progress)
    correction = None if calibration is None else Correction(calibration.positions, floor=calibration.std_floor)
    outputs = Outputs(correction=correction, observation_gradient=config.observation_gradient)
    with tempfile.TemporaryDirectory(dir=config.out.parent, prefix=".export-") as scratch:
        directory = Path(scratch) / "bundle"
        directory.mkdir()
        _write_graphs(directory, run, law, outputs, progress)
        manifest = describe(
            run,
            law,
            name=config.name,
            observation_gradient=config.observation_gradient,
            calibration=calibration,
        )
        _write_card(directory, manifest, calibration, Record.of(run))
        manifest = write_sealed(manifest, directory)
        directory.rename(config.out)
    return manifest


def _calibration(directory: Path, run: Run, law: UncertaintyGraph, progress: Progress) -> Calibration:
    """That of this actor, law and task: the run's own, or a new one as thorough as that, which is then kept with the run."""
    kept = Calibration.read(directory)
    own = (fingerprint(run, law), run.config.env, run.config.perturb, run.config.agent.discount)
    if kept is not None and (kept.fingerprint, kept.environment, kept.perturbations, kept.discount) == own:
        return kept
    config = CalibrationConfig()
    if kept is not None:
        progress.console.print(
            f"{directory / CALIBRATION_FILE} is of another actor, law or task (another --samples, say): calibrating anew"
        )
        config = CalibrationConfig(**{field.name: getattr(kept, field.name) for field in fields(CalibrationConfig)})
    calibration = calibrate(run, law, config, progress=progress)
    calibration.write(directory)
    return calibration


@torch.no_grad()
def _write_graphs(directory: Path, run: Run, law: UncertaintyGraph, outputs: Outputs, progress: Progress) -> None:
    """The three graphs, each held against torch, and the golden data."""
    actor = copy.deepcopy(run.agent.actor).eval()
    policy, uncertainty = PolicyGraph(actor, law, outputs).eval(), CandidatesGraph(law, outputs).eval()
    probes, names = _probes(run), list(outputs.names)
    actions = actor(probes)
    candidates = {"observation": probes, "action": _candidates(actor, actions)}
    graphs: list[tuple[str, nn.Module, dict[str, Tensor], list[str]]] = [
        ("actor.onnx", actor, {"observation": probes}, ["action"]),
        ("uncertainty.onnx", uncertainty, candidates, names),
        ("policy.onnx", policy, {"observation": probes}, ["action", *names]),
    ]
    threshold = float(law.summarise.return_threshold)
    for name, graph, inputs, given in progress.track(graphs, description="graphs"):
        export_graph(graph, inputs, given, directory / name, axes={name: AXES[name] for name in inputs})
        check_graph(directory / name, graph, inputs, given, threshold=threshold)
    with torch.enable_grad():
        check_gradients(directory / "uncertainty.onnx", law, probes, actions)
    np.savez(directory / "golden.npz", allow_pickle=False, **_golden(policy, probes, threshold))


def _write_card(directory: Path, manifest: dict[str, Any], calibration: Calibration | None, record: Record) -> None:
    (directory / "README.md").write_text(policy_card(manifest, calibration, record), encoding="utf-8")
    card = json.dumps(card_json(manifest, calibration, record), indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "card.json").write_text(card + "\n", encoding="utf-8")
    if calibration is not None:
        calibration_figure(calibration, directory / "calibration.svg")
        if calibration.warnings:
            warning_figure(calibration, directory / "warning.svg")


def _probes(run: Run) -> Tensor:
    """Observations (up to 64, S) for checks and golden data: replayed ones, and ones at and beyond the range of the data."""
    generator = torch.Generator().manual_seed(0)
    replayed = run.replay.sample(min(REPLAYED_PROBES, len(run.replay)), generator).observation
    standardiser = run.agent.observation
    corners = torch.stack([standardiser.low, standardiser.high])
    wide = standardiser.restore(4 * torch.randn(8, len(standardiser.mean), generator=generator))
    return torch.cat([replayed[:12], corners, wide[:2], replayed[12:], wide[2:]])


def _candidates(actor: Actor, actions: Tensor) -> Tensor:
    """The actor's actions (B, A) and others within the limits, (B, C, A)."""
    generator = torch.Generator().manual_seed(0)
    others = 2 * torch.rand(len(actions), CANDIDATE_PROBES - 1, actions.shape[1], generator=generator) - 1
    return torch.cat([actions.unsqueeze(1), actor.action.from_unit(others)], 1)


def _golden(policy: PolicyGraph, probes: Tensor, threshold: float) -> dict[str, NDArray[np.float32]]:
    """Outputs at the probes whose samples are clearest of a sign and of the threshold: a share of samples must not hang on rounding."""
    names = ["action", *policy.outputs.names]

    def outputs(observation: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, policy(observation), strict=True))

    found = outputs(probes)
    marks = (found["gradient_samples"].flatten(1).abs(), (found["return_samples"] - threshold).abs())
    clear = torch.stack([size.amin(1) / size.amax(1).clamp_min(1e-12) for size in marks]).amin(0)
    rows = probes[clear.topk(min(GOLDEN_ROWS, len(probes))).indices]
    return {"observation": rows.numpy(), **{name: value.numpy() for name, value in outputs(rows).items()}}


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Entry point of `dst-export`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        config = tyro.cli(ExportConfig, prog="dst-export")
        console = Console(stderr=True)
        with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
            manifest = export(config, progress=progress)
    except (CalibrationError, ExportError, TrainingError, TaskError, ValueError) as error:
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
