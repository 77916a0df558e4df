"""The figures of the policy card: does the law hold, and does it warn."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dst_core.calibration.result import Calibration, Estimate
from dst_core.style import COLOURS, INK, drawing, save_svg, styles

SIZE: Final = (7.6, 3.2)
"""In inches."""
APART: Final = 0.008
"""Half the distance between two marks at one level."""
MARKS: Final[dict[str, Any]] = {"marker": "o", "markersize": 5, "linestyle": "none", "capsize": 2.5}
"""Of values with intervals."""
SIGNALS: Final = {
    "-return_cvar": "low CVaR of the return",
    "1 - gradient_resultant_length": "gradient samples disagree",
    "critic_disagreement": "critics disagree",
    "data_distance": "far from the training data",
    "-return_mean": "low mean return",
}
"""What a high value of each signal means."""


def calibration_figure(calibration: Calibration, path: Path) -> None:
    """Coverage of the central intervals against nominal, raw and corrected, and the PIT histogram of the raw law, as SVG.

    Raises:
        OSError: if it cannot be written.
    """
    with drawing():
        figure = Figure(figsize=SIZE, layout="constrained")
        left, right = figure.subplots(1, 2)
        _coverage(left, calibration)
        _pit(right, calibration.pit)
        save_svg(figure, path)


def warning_figure(calibration: Calibration, path: Path) -> None:
    """ROC curve of every signal for falls within the horizon, and the areas under them with their intervals, as SVG.

    Raises:
        OSError: if it cannot be written.
    """
    with drawing():
        figure = Figure(figsize=SIZE, layout="constrained")
        left, right = figure.subplots(1, 2)
        look = styles(tuple(found.signal for found in calibration.warnings))
        for found in reversed(calibration.warnings):
            style = look[found.signal]
            left.plot(found.false_alarms, found.warned, color=style.colour, linestyle=style.line, linewidth=style.width)
        left.plot((0, 1), (0, 1), color=INK, linewidth=0.8)
        left.set(xlim=(0, 1), ylim=(0, 1.01), xlabel="false alarms, share of the other ticks", ylabel="falls warned of")
        left.set_title(f"Falls within {calibration.failure_horizon_s:g} s", loc="left")
        for place, found in enumerate(reversed(calibration.warnings)):
            style = look[found.signal]
            right.errorbar([found.auc.value], [place], xerr=_lengths([found.auc]), color=style.colour, **MARKS)
            right.plot((0.02, 0.18), (place, place), color=style.colour, linestyle=style.line, linewidth=style.width)
        right.axvline(0.5, color=INK, linewidth=0.8)
        names = [SIGNALS.get(found.signal, found.signal) for found in reversed(calibration.warnings)]
        right.set_yticks(range(len(names)), names)
        right.set(xlim=(0, 1), ylim=(-0.6, len(names) - 0.4), xlabel="area under the curve (0.5: chance)")
        right.grid(False, axis="y")
        save_svg(figure, path)


def _coverage(axis: Axes, calibration: Calibration) -> None:
    axis.plot((0, 1), (0, 1), color=INK, linewidth=0.8)
    nominal = np.array(calibration.levels)
    drawn = (
        ("raw", calibration.raw, COLOURS[1], "s", -APART),
        ("corrected", calibration.corrected, COLOURS[0], "o", APART),
    )
    for name, scores, colour, marker, beside in drawn:
        values = [estimate.value for estimate in scores.coverage]
        lengths = _lengths(scores.coverage)
        axis.errorbar(nominal + beside, values, yerr=lengths, color=colour, label=name, **{**MARKS, "marker": marker})
    axis.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="nominal share", ylabel="share of realised returns within")
    axis.set_title("Central intervals", loc="left")
    axis.legend(loc="upper left")


def _pit(axis: Axes, shares: Sequence[float]) -> None:
    bins = len(shares)
    axis.bar((np.arange(bins) + 0.5) / bins, shares, width=0.9 / bins, color=COLOURS[1], alpha=0.75)
    axis.axhline(1 / bins, color=INK, linewidth=0.8)
    axis.set(xlim=(0, 1), xlabel="place of the realised return in the raw law", ylabel="share of realised returns")
    axis.set_title("PIT (level if calibrated)", loc="left")


def _lengths(estimates: Sequence[Estimate]) -> list[list[float]]:
    """Of error bars below and above, as matplotlib wants them."""
    return [
        [max(estimate.value - estimate.low, 0.0) for estimate in estimates],
        [max(estimate.high - estimate.value, 0.0) for estimate in estimates],
    ]
