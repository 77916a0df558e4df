"""The figures of the policy card."""

from pathlib import Path

from matplotlib.figure import Figure

from dst_core.calibration.result import Calibration


def calibration_figure(calibration: Calibration, path: Path) -> None:
    """Coverage over nominal coverage."""
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    for name, scores in (("raw", calibration.raw), ("corrected", calibration.corrected)):
        axes.plot(calibration.levels, [estimate.value for estimate in scores.coverage], marker="o", label=name)
    axes.legend()
    figure.savefig(path)


def warning_figure(calibration: Calibration, path: Path) -> None:
    """ROC curves of every signal."""
    figure = Figure(layout="constrained")
    axes = figure.add_subplot()
    for found in calibration.warnings:
        axes.plot(found.false_alarms, found.warned, label=found.signal)
    axes.legend()
    figure.savefig(path)
