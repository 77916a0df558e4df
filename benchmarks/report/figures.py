"""The figures of a page: learning curves by steps and by computing time, probabilities of improvement, ablations."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from benchmarks.report.ablations import changes, normalised_difference
from benchmarks.report.aggregate import ALL, by_kind, probability_of_improvement
from benchmarks.report.curves import Band, bands
from benchmarks.report.statistics import Estimate
from benchmarks.report.study import Comparison, Study, base_of
from dst_core.style import INK, Style, drawing, save, styles

MOST_COLUMNS = 3
PANEL = (3.2, 2.4)
"""Width and height of one, in inches."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure that the data have something for."""

    name: str
    """Of its files."""
    caption: str
    draw: Callable[[Study], Figure]


def plots(study: Study) -> list[Plot]:
    """Those that show something, in the order of the page."""
    reference = study.reference
    chosen = []
    if study.algorithms:
        chosen = [
            Plot(
                name="curves",
                caption="Return per episode by environment steps: interquartile mean over seeds, with 95 % intervals.",
                draw=lambda study: _grid(study, x="steps"),
            ),
            Plot(
                name="time",
                caption="Return per episode by CPU seconds of training (mean over seeds): interquartile mean, with 95 % intervals.",
                draw=lambda study: _grid(study, x="seconds"),
            ),
        ]
    if by_kind(study) and study.peers:
        caption = f"Probability that a run of {reference} scores above one of the other algorithm, with 95 % intervals, by perturbation."
        chosen.append(Plot(name="improvement", caption=caption, draw=_improvement))
    if _ablated(study):
        caption = "Normalised score of each ablation less that of the algorithm, with 95 % intervals."
        chosen.append(Plot(name="ablations", caption=caption, draw=_ablations))
    return chosen


def write_figures(study: Study, directory: Path) -> list[Path]:
    """Write NAME.svg and NAME.png of every plot.

    Raises:
        OSError: if the directory cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for plot in plots(study):
        with drawing():
            save(plot.draw(study), directory / plot.name)
        written.append(directory / f"{plot.name}.svg")
    return written


def _grid(study: Study, *, x: str) -> Figure:
    """One panel per setting, environments in rows of their own; those with a single setting share rows, at the end."""
    rows = _rows(study.algorithms)
    columns = max(len(row) for row in rows)
    look = styles((study.reference, *study.peers))
    legend_columns = max(1, int(columns * PANEL[0] / (0.75 + 0.085 * max(map(len, look)))))
    head = 0.2 * math.ceil(len(look) / legend_columns) + 0.15
    height = PANEL[1] * len(rows) + head
    below_legend = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - head / height))
    figure = Figure(figsize=(PANEL[0] * columns, height), layout=below_legend)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, panels in zip(rows, axes, strict=True):
        for axis in panels[len(row) :]:
            axis.set_visible(False)
        for index, (comparison, axis) in enumerate(zip(row, panels, strict=False)):
            _panel(axis, comparison, bands(study, comparison), look, x=x)
            axis.set_ylabel("return" if index == 0 else "")
            axis.set_xlabel("environment steps" if x == "steps" else "CPU seconds")
    _legend(figure, look, columns=legend_columns)
    return figure


def _rows(comparisons: Sequence[Comparison]) -> list[list[Comparison]]:
    by_environment: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_environment.setdefault(comparison.setting.environment, []).append(comparison)
    groups = [group for group in by_environment.values() if len(group) > 1]
    groups.append([group[0] for group in by_environment.values() if len(group) == 1])
    return [group[start : start + MOST_COLUMNS] for group in groups for start in range(0, len(group), MOST_COLUMNS)]


def _panel(axis: Axes, comparison: Comparison, drawn: Mapping[str, Band], look: Mapping[str, Style], *, x: str) -> None:
    for variant in reversed(list(drawn)):
        whole, style = drawn[variant], look[variant]
        band = whole.at(whole.steps <= comparison.steps.limit if x == "steps" else whole.seconds > 0)
        across = band.steps if x == "steps" else band.seconds
        axis.plot(across, band.middle, color=style.colour, linestyle=style.line, linewidth=style.width)
        if band.low is not None and band.high is not None:
            axis.fill_between(
                across, band.low, band.high, color=style.colour, alpha=0.2 if style.width > 2 else 0.1, linewidth=0
            )
    axis.set_title(f"{comparison.setting.environment}\n{comparison.setting.perturbation}", loc="left")
    if x == "seconds":
        axis.set_xscale("log")
    else:
        axis.set_xlim(0, comparison.steps.limit)
        axis.xaxis.set_major_locator(MaxNLocator(4))


def _legend(figure: Figure, look: Mapping[str, Style], *, columns: int) -> None:
    handles = [
        Line2D([], [], color=style.colour, linestyle=style.line, linewidth=style.width, label=variant)
        for variant, style in look.items()
    ]
    figure.legend(handles=handles, loc="upper center", ncols=min(columns, len(handles)), handlelength=3.2)


def _improvement(study: Study) -> Figure:
    kinds = by_kind(study)
    columns = min(MOST_COLUMNS, len(kinds))
    rows = math.ceil(len(kinds) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, (0.7 + 0.27 * len(study.peers)) * rows + 0.3), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    look = styles((study.reference, *study.peers))
    for axis in axes[len(kinds) :]:
        axis.set_visible(False)
    for axis, (kind, comparisons) in zip(axes, kinds.items(), strict=False):
        rows_of_kind = [
            (peer, probability_of_improvement(study, comparisons, peer), look[peer]) for peer in study.peers
        ]
        _dots(axis, rows_of_kind, even=0.5)
        axis.set_xlim(-0.05, 1.05)
        axis.set_title("all perturbations and none" if kind == ALL else kind)
        axis.tick_params(labelbottom=True)
    figure.supxlabel(f"probability that {study.reference} scores above", fontsize=9, color=INK)
    return figure


def _ablations(study: Study) -> Figure:
    rows = _ablated(study)
    figure = Figure(figsize=(7.0, 0.9 + 0.27 * len(rows)), layout="constrained")
    axis = figure.subplots()
    _dots(axis, [(name, difference, styles(("ablation",))["ablation"]) for name, difference in rows], even=0.0)
    axis.set_xlabel("normalised score less that of the algorithm")
    return figure


def _ablated(study: Study) -> list[tuple[str, Estimate]]:
    differences = [
        (name, normalised_difference(study, study.ablations, name, base_of(name))) for name in changes(study)
    ]
    return [(name, difference) for name, difference in differences if difference is not None]


def _dots(axis: Axes, rows: Sequence[tuple[str, Estimate | None, Style]], *, even: float) -> None:
    """One row each from top to bottom: a dot for the number, a line for its interval."""
    for place, (_, estimate, style) in enumerate(rows):
        if estimate is None:
            continue
        if estimate.low is not None and estimate.high is not None:
            axis.plot(
                [estimate.low, estimate.high], [place, place], color=style.colour, linewidth=2.0, solid_capstyle="butt"
            )
        axis.plot([estimate.value], [place], color=style.colour, marker=style.marker, markersize=5.5)
    axis.axvline(even, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axis.set_yticks(np.arange(len(rows)), [name for name, _, _ in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")
