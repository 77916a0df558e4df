"""The growth of an update's price as curves on logarithmic axes, beside what growth in proportion would be."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from dst_core.style import INK, drawing, save, styles

NAMES = {"mmd": "plain MMD", "max-sliced-mmd": "max-sliced MMD"}
AXIS_NAMES = {"samples": "samples", "batch": "batch", "hidden": "width", "action": "actions"}


def draw(curves: Mapping[str, Mapping[str, Sequence[tuple[int, float]]]], stem: Path) -> None:
    """Write STEM.svg and STEM.png.

    Args:
        curves: size's name to distance to (size, milliseconds per update), in rising order.
        stem: path without suffix.

    Raises:
        OSError: if they cannot be written.
    """
    looks = styles(tuple(NAMES))
    with drawing():
        figure = Figure(figsize=(9.0, 2.7), layout="constrained")
        panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for panel, (axis, by_distance) in zip(panels, curves.items(), strict=True):
            for distance, points in by_distance.items():
                sizes, milliseconds = zip(*points, strict=True)
                look = looks[distance]
                label = NAMES[distance] if panel is panels[0] else None
                panel.plot(
                    sizes, milliseconds, color=look.colour, ls=look.line, marker=look.marker, lw=look.width, label=label
                )
            (first, least), (last, _) = by_distance["mmd"][0], by_distance["mmd"][-1]
            proportional = "in proportion" if panel is panels[0] else None
            panel.plot((first, last), (least, least * last / first), color=INK, ls=":", lw=1, label=proportional)
            panel.set(xscale="log", yscale="log", xlabel=AXIS_NAMES[axis])
            panel.set_xticks(sizes, [str(size) for size in sizes])
            panel.minorticks_off()
        panels[0].set_ylabel("ms per update")
        figure.legend(loc="outside upper center", ncols=3)
        save(figure, stem)
