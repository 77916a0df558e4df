"""The growth of a control round trip's latency as curves on logarithmic axes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator

from dst_core.style import drawing, save, styles

NAMES = {"p50": "control, p50", "p99": "control, p99", "infer": "inference alone, p50"}
AXIS_NAMES = {"robots": "robots", "samples": "samples", "hidden": "width"}


def draw(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], stem: Path) -> None:
    """Write STEM.svg and STEM.png.

    Args:
        curves: size's name to one of `NAMES` to (size, milliseconds), in rising order.
        stem: path without suffix.

    Raises:
        OSError: if they cannot be written.
    """
    looks = styles(tuple(NAMES))
    labelled: set[str] = set()
    with drawing():
        figure = Figure(figsize=(9.0, 2.7), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for panel, (axis, by_kind) in zip(panels, curves.items(), strict=True):
            for kind, points in by_kind.items():
                sizes, milliseconds = zip(*points, strict=True)
                look = looks[kind]
                label = None if kind in labelled else NAMES[kind]
                labelled.add(kind)
                panel.plot(
                    sizes, milliseconds, color=look.colour, ls=look.line, marker=look.marker, lw=look.width, label=label
                )
            panel.set(xscale="log", yscale="log", xlabel=AXIS_NAMES[axis])
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
        # Latencies seldom span decades, so powers of ten alone would leave the axis almost empty.
        panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[0].yaxis.set_major_formatter(FormatStrFormatter("%g"))
        panels[0].set_ylabel("ms")
        figure.legend(loc="outside upper center", ncols=len(NAMES))
        save(figure, stem)
