"""Figures: what is drawn, on both backgrounds, and the same bytes every time."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.report.curves import bands
from benchmarks.report.figures import plots, write_figures
from benchmarks.report.statistics import iqm
from benchmarks.report.study import study_of
from dst_core.style import COLOURS, DARK, INK, LINES, MARKERS, WHITE, styles
from tests.benchmarks.report.tables import flat, made_run, results, seeds


def study(runs):
    return study_of(results(runs), reference="dst")


def some_study():
    runs = [*seeds([8.0, 9.0, 10.0]), *seeds([5.0, 6.0, 7.0], variant="td3"), *seeds([3.0, 4.0], variant="dst, flow")]
    return study([*runs, *seeds([4.0, 5.0], perturbation="observation=0.2")])


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2."""
    channels = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("background", [WHITE, DARK])
def test_colours_stand_out_on_either_background(background: str) -> None:
    for colour, least in [*((colour, 3.0) for colour in COLOURS), (INK, 4.3)]:
        darker, lighter = sorted((luminance(colour), luminance(background)))
        assert (lighter + 0.05) / (darker + 0.05) >= least, f"{colour} on {background}"


def test_variants_differ_in_colour_and_then_in_line() -> None:
    count = len(COLOURS) * len(LINES)
    given = styles(tuple(f"v{index}" for index in range(count))).values()
    assert len({(style.colour, style.line) for style in given}) == count
    assert len({(style.colour, style.marker) for style in list(given)[: len(COLOURS) * len(MARKERS) // 2]}) > len(
        COLOURS
    )


def test_figures_are_the_same_bytes_every_time_transparent_and_without_dates(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_figures(some_study(), tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(
        f"{name}.{kind}" for name in ("ablations", "curves", "improvement", "time") for kind in ("png", "svg")
    )
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    svg = (tmp_path / "a" / "curves.svg").read_text(encoding="utf-8")
    assert "dc:date" not in svg
    assert "matplotlib v" not in svg.lower()
    for name in ("curves", "improvement"):
        with Image.open(tmp_path / "a" / f"{name}.png") as image:
            alpha = np.asarray(image.convert("RGBA"))[..., 3]
        assert alpha[0, 0] == 0
        assert (alpha == 0).mean() > 0.5
        assert (alpha == 255).any()


def test_figures_are_those_the_data_have_something_for() -> None:
    assert [plot.name for plot in plots(some_study())] == ["curves", "time", "improvement", "ablations"]
    assert [plot.name for plot in plots(study(seeds([1.0, 2.0])))] == ["curves", "time"]
    assert [plot.name for plot in plots(study([*seeds([-1.0, -2.0]), *seeds([-3.0], variant="td3")]))] == [
        "curves",
        "time",
    ]


def test_awkward_results_are_drawn(tmp_path: Path) -> None:
    """One seed, no computing time at all, a variant of which every run diverged, more settings of a task than columns."""
    runs = [made_run(flat(1.0), seconds_per_step=0.0), made_run({0: 0.0}, variant="td3", status="diverged")]
    runs += [made_run(flat(1.0), perturbation=f"observation=0.{strength}") for strength in range(1, 5)]
    assert len(write_figures(study(runs), tmp_path)) == 3


def test_band_is_that_of_the_runs_at_steps_all_finished_ones_share() -> None:
    returns = [[0.0, 1.0, 4.0], [0.0, 2.0, 5.0], [0.0, 6.0, 9.0]]
    runs = [made_run(dict(zip((0, 500, 1000), row, strict=True)), seed=seed) for seed, row in enumerate(returns)]
    runs[0] = made_run({0: 0.0, 250: 77.0, 500: 1.0, 1000: 4.0}, seed=0)
    runs.append(made_run({0: 2.0, 500: 20.0}, seed=3, status="diverged"))  # goes on at the untrained return, 0.5
    made = study(runs)
    (band,) = bands(made, made.algorithms[0]).values()
    assert band.steps.tolist() == [0, 500, 1000]
    assert band.seconds == pytest.approx([0, 5, 10])
    assert band.middle[1] == float(iqm(np.array([1.0, 2.0, 6.0, 20.0])))
    assert band.middle[2] == float(iqm(np.array([4.0, 5.0, 9.0, 0.5])))
    assert band.low is not None
    assert band.high is not None
    assert (band.low <= band.middle).all()
    assert (band.middle <= band.high).all()
    assert (band.low[2], band.high[2]) != (band.middle[2], band.middle[2])


def test_environments_with_a_single_setting_share_rows_and_others_have_their_own() -> None:
    settings = [("B-v0", "none"), ("C-v0", "none"), ("C-v0", "observation=0.2"), ("D-v0", "none")]
    made = study([run for env, perturb in settings for run in seeds([1.0, 2.0], environment=env, perturbation=perturb)])
    shown = [axis for axis in plots(made)[0].draw(made).axes if axis.get_visible()]
    rows = [(axis.get_subplotspec().rowspan.start, axis.get_title(loc="left").split("\n")[0]) for axis in shown]
    assert rows == [(0, "C-v0"), (0, "C-v0"), (1, "B-v0"), (1, "D-v0")]
