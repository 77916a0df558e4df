"""What a person sees, and how long it still takes."""

import io
import re
import tomllib
from itertools import product
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.experiments.engines import Progress
from benchmarks.experiments.grid import GridRun
from benchmarks.experiments.live import Display, span
from benchmarks.experiments.plan import Plan
from benchmarks.experiments.record import Outcome
from benchmarks.experiments.results import no_results
from benchmarks.experiments.tables import Tables
from benchmarks.experiments.time_left import TimeLeft
from dst_core.config import TrainConfig

ROOT = Path(__file__).parents[3]


class Clock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def run_of(variant: str, seed: int = 0, steps: int = 2000) -> GridRun:
    config = TrainConfig(env="PointMass1-v0", steps=steps, seed=seed, out=Path("nowhere"))
    return GridRun(environment="PointMass1-v0", perturbation="none", variant=variant, config=config)


def test_time_left_is_the_steps_left_at_their_own_pace_shared_by_the_processes() -> None:
    clock = Clock()
    left = TimeLeft(processes=2, clock=clock)
    dst, more, td3, td3_more = run_of("dst"), run_of("dst", 1), run_of("td3"), run_of("td3", 1)
    remaining = {dst.id: 1500, more.id: 2000, td3.id: 2000, td3_more.id: 2000}
    assert left.seconds(remaining, [dst]) is None
    left.saw(dst, 300)
    left.saw(td3, 1000)
    assert left.seconds(remaining, [dst]) is None, "a single look is no pace"
    clock.now_s += 40
    left.saw(dst, 500)  # 0.2 s per step
    left.knew(td3, steps=1000, seconds=50)  # 0.05 s per step
    assert left.seconds(remaining, [dst, more, td3, td3_more]) == pytest.approx((3500 * 0.2 + 4000 * 0.05) / 2)
    assert left.seconds(remaining, [dst]) == pytest.approx(1500 * 0.2), "one run is never shared"
    clock.now_s += 1
    left.saw(dst, 0)
    assert left.seconds(remaining, [dst]) == pytest.approx(1500 * 0.2), (
        "an attempt that begins again made no steps back"
    )
    other = run_of("mage")
    assert left.seconds({other.id: 100}, [other]) == pytest.approx(100 * (0.2 + 0.05) / 2), "as the others, in the mean"
    assert left.seconds({}, []) == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (3569, "59 min"), (3571, "1 h 0 min"), (8000, "2 h 13 min")],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words


def display_of(
    runs: list[GridRun], *, terminal: bool = True, width: int = 80, height: int = 40, done: int = 1
) -> Display:
    """Of a grid whose first run is done, with a return of 4."""
    finished = {run.id: Outcome(status="finished", error="", config={}) for run in runs[:done]}
    plan = Plan(todo=tuple(runs[done:]), under_way=frozenset(), diverged=frozenset(), done=finished, unwritten=())
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=height, color_system=None, legacy_windows=False
    )
    returns = dict.fromkeys(finished, 4.0)
    return Display(runs, plan, returns=returns, time_left=TimeLeft(processes=1), console=console)


def shown(*, terminal: bool) -> str:
    runs = [run_of(variant, seed) for variant in ("dst", "dst, max-sliced", "td3") for seed in range(3)]
    display = display_of(runs, terminal=terminal)
    with display:
        for number, latest in ((1, 8.0), (2, None), (3, None), (4, -3.0)):
            display.progress(Progress(run=runs[number].id, step=500, latest_return=latest))
        display.ended(runs[3].id, Outcome(status="diverged", error="critic_loss is not finite", config={}), None)
        display.ended(runs[4].id, Outcome(status="finished", error="", config={}), -2.5)
        display.ended(runs[2].id, None, None)
    return written(display)


def written(display: Display) -> str:
    assert isinstance(display.console.file, io.StringIO)
    return display.console.file.getvalue()


def test_without_a_terminal_there_is_a_line_per_run_that_ended() -> None:
    assert [line.rstrip() for line in shown(terminal=False).splitlines()] == [
        "2/9 diverged  PointMass1-v0/none/dst, max-sliced/seed-0  critic_loss is not finite",
        "3/9 finished  PointMass1-v0/none/dst, max-sliced/seed-1  return -2.5",
    ]


def test_names_stay_whole_and_every_variant_counts_its_seeds() -> None:
    *_, header, setting, first, second, third, bar = (line.rstrip() for line in shown(terminal=True).splitlines())
    assert header.split() == ["runs", "finished", "failed", "of", "latest", "return"]
    assert setting == "PointMass1-v0/none"
    assert first.split() == ["dst", "1", "3", "6"]  # finished, of, mean latest return
    assert second.split() == ["dst,", "max-sliced", "1", "1", "3", "-2.5"]  # finished, failed
    assert third.split() == ["td3", "3", "-"]
    assert "3/9 runs" in bar


def test_runs_under_way_show_how_far_they_are() -> None:
    runs = [run_of("dst", seed) for seed in range(3)]
    display = display_of(runs)
    with display:
        display.progress(Progress(run=runs[1].id, step=500, latest_return=8.0))
        lines = pictured(display)
    assert [line.split() for line in lines[:3]] == [
        ["under", "way", "step", "of", "return"],
        ["PointMass1-v0/none"],
        ["dst,", "seed", "1", "500", "2000", "8"],
    ]


def pictured(display: Display) -> list[str]:
    """What a refresh draws."""
    before = len(written(display))
    display.refresh()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", written(display)[before:])
    return [line.rstrip() for line in plain.splitlines()]


@pytest.mark.parametrize(("width", "height", "processes"), [(80, 24, 2), (80, 24, 16), (120, 40, 2), (80, 10, 4)])
def test_grid_of_the_project_fits_a_terminal_and_breaks_no_name(width: int, height: int, processes: int) -> None:
    table = tomllib.loads((ROOT / "docs" / "results" / "grid.toml").read_text(encoding="utf-8"))
    runs = [
        GridRun(
            environment=environment,
            perturbation=" ".join(perturbation) or "none",
            variant=variant,
            config=TrainConfig(env=environment, steps=sweep["steps"], seed=seed),
        )
        for sweep in table["sweep"]
        for environment, perturbation, variant in product(
            sweep["environments"], sweep["perturbations"], sweep["variants"]
        )
        for seed in table["seeds"]
    ]
    display = display_of(runs, width=width, height=height, done=40)
    under_way = runs[-processes:]
    with display:
        for run in under_way:
            display.progress(Progress(run=run.id, step=500, latest_return=-1234.5))
        lines = pictured(display)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert "40/510 runs" in lines[-1]
    words = {word for run in runs for word in (f"{run.variant}, seed {run.config.seed}", run.setting)}
    for line in lines[:-1]:
        name = re.split(r"\s{2,}", line.strip())[0]
        assert name in words | {"under way", "runs", ""} or re.fullmatch(r"and \d+ more", name), line
    if processes == 2:
        assert all(any(f"{run.variant}, seed {run.config.seed}" in line for line in lines) for run in under_way)
        assert all(any(line.startswith(run.setting) for line in lines) for run in runs), "every setting is counted"
        # variants whose runs are neither under way nor done are summed up
        assert not any("dst, 20 samples" in line for line in lines)


def test_return_that_is_not_finite_is_none_of_a_mean() -> None:
    tables = Tables(no_results())
    name = {"run": "a", "environment": "e", "perturbation": "none", "variant": "v", "seed": 0}
    tables.put(name, [{**name, "step": 0, "return_mean": None}])
    assert tables.latest_returns() == {}
