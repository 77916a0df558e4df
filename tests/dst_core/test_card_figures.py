"""The card's figures draw what was measured, on white and dark pages alike, and the same bytes every time."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dst_core import card_figures
from dst_core.calibration.result import Calibration
from dst_core.card_figures import APART, SIGNALS, calibration_figure, warning_figure
from tests.dst_core.calibration.results import made_up_calibration

FIGURES = [calibration_figure, warning_figure]


def panels(draw, calibration: Calibration, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of the figure that was written."""
    drawn: list[Figure] = []
    save = card_figures.save_svg

    def kept(figure: Figure, path: Path) -> None:
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(card_figures, "save_svg", kept)
    draw(calibration, path)
    assert path.exists()
    (figure,) = drawn
    return figure.axes


def test_coverage_is_drawn_with_its_intervals_at_the_nominal_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibration = made_up_calibration()
    left, _ = panels(calibration_figure, calibration, tmp_path / "calibration.svg", monkeypatch)
    shown = {bars.get_label(): bars for bars in left.containers}
    for name, scores, beside in (("raw", calibration.raw, -APART), ("corrected", calibration.corrected, APART)):
        marks, _, (reach,) = shown[name].lines
        assert marks.get_ydata() == pytest.approx([found.value for found in scores.coverage])
        assert marks.get_xdata() == pytest.approx(np.array(calibration.levels) + beside)
        ends = [[low, high] for (_, low), (_, high) in reach.get_segments()]
        assert np.array(ends) == pytest.approx(np.array([[found.low, found.high] for found in scores.coverage]))


def test_pit_has_a_bar_for_every_bin_over_the_whole_law(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = made_up_calibration()
    _, right = panels(calibration_figure, calibration, tmp_path / "calibration.svg", monkeypatch)
    bars = [patch for patch in right.patches if isinstance(patch, Rectangle)]
    assert tuple(bar.get_height() for bar in bars) == calibration.pit
    middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
    assert middles == pytest.approx((np.arange(len(bars)) + 0.5) / len(bars))


def test_every_signal_has_its_curve_and_its_area_in_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = made_up_calibration()
    left, right = panels(warning_figure, calibration, tmp_path / "warning.svg", monkeypatch)
    curves = {line.get_color(): line for line in left.lines if len(line.get_xdata()) > 2}
    names = [label.get_text() for label in right.get_yticklabels()]
    assert len(curves) == len(right.containers) == len(calibration.warnings)
    for bars in right.containers:
        marks = bars.lines[0]
        (place,), (value,) = marks.get_ydata(), marks.get_xdata()
        (found,) = (one for one in calibration.warnings if one.auc.value == value)
        assert names[int(place)] == SIGNALS[found.signal]
        assert tuple(curves[marks.get_color()].get_ydata()) == found.warned


@pytest.mark.parametrize("draw", FIGURES)
def test_figures_are_transparent_and_the_same_bytes_every_time(draw, tmp_path: Path) -> None:
    for name in "ab":
        draw(made_up_calibration(), tmp_path / f"{name}.svg")
    first, second = ((tmp_path / f"{name}.svg").read_text(encoding="utf-8") for name in "ab")
    assert first == second
    assert "dc:date" not in first
    assert "#ffffff" not in first
    assert "#000000" not in first


def test_interval_that_leaves_its_value_out_is_drawn(tmp_path: Path) -> None:
    calibration = made_up_calibration()
    odd = dataclasses.replace(calibration.raw.coverage[0], low=calibration.raw.coverage[0].value + 0.005)
    raw = dataclasses.replace(calibration.raw, coverage=(odd, *calibration.raw.coverage[1:]))
    calibration_figure(dataclasses.replace(calibration, raw=raw), tmp_path / "odd.svg")
