"""dst-calibrate: measure on held-out episodes how far the law of a finished run holds, and correct its quantiles."""

import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dst_core.calibration.calibrate import calibrate
from dst_core.calibration.result import CALIBRATION_FILE, Calibration, CalibrationConfig, Estimate, Scores
from dst_core.errors import CalibrationError, ExportError, TrainingError
from dst_core.run import load_run
from dst_core.served_law import served_law
from sim_bridge.tasks import TaskError


@dataclass(frozen=True, kw_only=True)
class CalibrateConfig(CalibrationConfig):
    """Calibrate a finished training run on episodes that training never saw; dst-export does it too.

    Writes calibration.json into the directory of the run. dst-export takes it if actor and law are the same.

    Examples:
      dst-calibrate runs/hopper
      dst-calibrate runs/hopper --episodes 4000 --test-episodes 1000 --failure-horizon-s 0.5
    """

    run: Annotated[Path, tyro.conf.Positional]
    """Directory that dst-train wrote."""
    samples: int = 32
    """Joint samples behind every summary; as for dst-export."""


def run_calibration(config: CalibrateConfig, *, console: Console) -> Calibration:
    """Calibrate the run and write what was found.

    Raises:
        TrainingError: if the run cannot be read, is not finished, or has no law.
        ExportError: if the samples do not divide among the critics.
        CalibrationError: as `calibrate`.
        TaskError: if the task cannot be built.
    """
    run = load_run(config.run)
    law = served_law(run, samples=config.samples)
    with episode_bar(console) as progress:
        calibration = calibrate(run, law, config, progress=progress)
    calibration.write(config.run)
    return calibration


def episode_bar(console: Console) -> Progress:
    """What a person sees meanwhile on a terminal, and nothing elsewhere."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


def tables(calibration: Calibration) -> list[Table]:
    """The result for a person."""
    holds = Table(title="share of fresh returns within central intervals, and their width")
    for column in ("level", "raw", "corrected", "raw\nwidth", "corrected\nwidth"):
        holds.add_column(column, justify="right")
    raw, fixed = calibration.raw, calibration.corrected
    for index, level in enumerate(calibration.levels):
        holds.add_row(
            f"{level:.1%}",
            _share(raw.coverage[index]),
            _share(fixed.coverage[index]),
            f"{raw.width[index]:.3g}",
            f"{fixed.width[index]:.3g}",
        )
    marks = Table(title=f"thresholds for {calibration.false_alarm_rate:.1%} false alarms")
    for column in ("signal", "threshold", "false alarms on fresh episodes"):
        marks.add_column(column, justify="left" if column == "signal" else "right")
    for name in ("critic_disagreement", "data_distance"):
        mark = getattr(calibration, name)
        marks.add_row(name, f"{mark.value:.3g}", _share(mark.alarm_rate))
    marks.caption = calibration.thresholds_with_falls
    warned = Table(title=f"warning of a fall within {calibration.failure_horizon_s:g} s")
    for column in ("signal", "area under the ROC curve"):
        warned.add_column(column, justify="left" if column == "signal" else "right")
    for warning in calibration.warnings:
        area = warning.auc
        warned.add_row(warning.signal, f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})")
    if calibration.no_warnings is not None:
        warned.add_row("none", calibration.no_warnings)
    return [holds, marks, warned]


def _share(estimate: Estimate) -> str:
    return f"{estimate.value:.1%} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Entry point of `dst-calibrate`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    console = Console(stderr=True)
    try:
        config = tyro.cli(CalibrateConfig, prog="dst-calibrate")
        calibration = run_calibration(config, console=console)
    except (CalibrationError, ExportError, TrainingError, TaskError, ValueError) as error:
        print(f"dst-calibrate: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as ended:
        if ended.code in (128 + signal.SIGINT, 128 + signal.SIGTERM):
            print("dst-calibrate: interrupted; nothing was written", file=sys.stderr)
        raise
    out = Console(soft_wrap=True)
    for table in tables(calibration):
        out.print(table)
    for name in ("raw", "corrected", "training_critics"):
        scores: Scores = getattr(calibration, name)
        print(f"{name}: returns are {scores.bias.value:+.3g} above the predicted {scores.centre} on average")
    print(f"written to {config.run / CALIBRATION_FILE}")


if __name__ == "__main__":
    main()
