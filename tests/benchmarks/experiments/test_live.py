"""What a person sees, and how long it still takes."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.experiments.engines import Progress
from benchmarks.experiments.grid import GridRun
from benchmarks.experiments.live import Display, span
from benchmarks.experiments.plan import Plan
from benchmarks.experiments.record import Outcome
from benchmarks.experiments.time_left import TimeLeft
from dst_core.config import TrainConfig


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


def shown(*, terminal: bool, height: int = 40, more: tuple[str, ...] = ()) -> str:
    runs = [run_of(variant, seed) for variant in ("dst", "td3", "tqc", *more) for seed in range(3)]
    done = {runs[0].id: Outcome(status="finished", error="", config={})}
    plan = Plan(todo=tuple(runs[1:]), under_way=frozenset(), diverged=frozenset(), done=done, unwritten=())
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120, height=height, color_system=None)
    returns = {runs[0].id: 4.0}
    with Display(runs, plan, returns=returns, time_left=TimeLeft(processes=1), console=console) as display:
        for number, latest in ((1, 8.0), (2, None), (3, None), (4, -3.0)):
            display.progress(Progress(run=runs[number].id, step=500, latest_return=latest))
        display.ended(runs[3].id, Outcome(status="diverged", error="critic_loss is not finite", config={}), None)
        display.ended(runs[4].id, Outcome(status="finished", error="", config={}), -2.5)
        display.ended(runs[2].id, None, None)
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_line_per_run_that_ended() -> None:
    assert [line.rstrip() for line in shown(terminal=False).splitlines()] == [
        "2/9 diverged  PointMass1-v0/none/td3/seed-0  critic_loss is not finite",
        "3/9 finished  PointMass1-v0/none/td3/seed-1  return -2.5",
    ]


def test_table_counts_the_seeds_of_every_group() -> None:
    picture = shown(terminal=True)
    rows = [line.split()[2:] for line in picture.splitlines() if line.startswith("PointMass1-v0")]
    assert rows[-3:] == [
        ["dst", "1", "1", "3", "6"],  # finished, running, of, mean latest return
        ["td3", "1", "1", "3", "-2.5"],  # finished, failed
        ["tqc", "0", "3", "-"],
    ]
    assert "3/9 runs" in picture.splitlines()[-1]


def test_table_leaves_out_what_does_not_fit_and_says_so() -> None:
    *rows, more, _ = shown(terminal=True, height=11, more=("mage", "iqn", "mmd")).splitlines()[-5:]
    assert [row.split()[2] for row in rows] == ["dst", "td3", "tqc"], "those under way come first"
    assert more.strip() == "and 3 more"
