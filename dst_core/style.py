"""How figures look: readable on white and on GitHub's dark page alike, and the same bytes every time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

WHITE: Final = "#ffffff"
DARK: Final = "#0d1117"
INK: Final = "#727a84"
"""Text and axes."""
COLOURS: Final = ("#2f81e0", "#d55e00", "#1f9e77", "#b565c9", "#a67c00", "#d9487d", "#2a93b5", "#7a8288")
LINES: Final[tuple[Any, ...]] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)), (0, (9, 2)))
MARKERS: Final = ("o", "s", "^", "D", "v", "P")
PNG_DPI: Final = 120


class Style(NamedTuple):
    """Of one variant, in all figures; told apart by more than its colour."""

    colour: str
    line: Any
    marker: str
    width: float


def styles(variants: tuple[str, ...]) -> dict[str, Style]:
    """By their order; the first, the reference, is drawn wider."""
    return {
        variant: Style(
            COLOURS[index % len(COLOURS)],
            LINES[index % len(LINES)],
            MARKERS[index % len(MARKERS)],
            2.2 if index == 0 else 1.4,
        )
        for index, variant in enumerate(variants)
    }


@contextmanager
def drawing() -> Iterator[None]:
    """Within it figures are transparent, in colours of middle lightness, and free of anything random."""
    settings: dict[Any, Any] = {
        "svg.hashsalt": "dst-report",
        "svg.fonttype": "path",
        "font.family": "DejaVu Sans",
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "legend.fontsize": 9,
        "xtick.labelsize": 8,
        "ytick.labelsize": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK,
        "grid.alpha": 0.22,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "savefig.facecolor": "none",
        "savefig.transparent": True,
        **dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"), INK
        ),
    }
    with mpl.rc_context(settings):
        yield


def save(figure: Figure, stem: Path) -> None:
    """Write STEM.svg and STEM.png, without a date or the versions of programs.

    Raises:
        OSError: if they cannot be written.
    """
    save_svg(figure, stem.with_suffix(".svg"))
    figure.savefig(stem.with_suffix(".png"), dpi=PNG_DPI, metadata={"Software": None})


def save_svg(figure: Figure, path: Path) -> None:
    """Write an SVG, without a date or the versions of programs.

    Raises:
        OSError: if it cannot be written.
    """
    figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
