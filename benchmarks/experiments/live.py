"""What a person sees of an experiment: tables and a bar on a terminal, a line per finished run elsewhere."""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmarks.experiments.engines import Progress
from benchmarks.experiments.grid import GridRun, by_setting
from benchmarks.experiments.listing import Row, listing
from benchmarks.experiments.plan import Plan
from benchmarks.experiments.record import Outcome
from benchmarks.experiments.time_left import TimeLeft

DRAW_EVERY_S: Final = 0.5
COUNTS: Final = ("finished", "failed", "of")


class Display:
    """Progress of one experiment on standard output.

    Args:
        runs: of the grid.
        plan: what is done and to do.
        returns: latest returns of runs that are done, by id.
        time_left: what is told of the runs' paces.
        console: where to.
    """

    def __init__(
        self,
        runs: Sequence[GridRun],
        plan: Plan,
        *,
        returns: Mapping[str, float],
        time_left: TimeLeft,
        console: Console,
    ) -> None:
        self.console = console
        self._runs = {run.id: run for run in runs}
        self._outcomes = dict(plan.done)
        self._running: set[str] = set()
        self._steps = {run.id: run.config.steps if run.id in plan.done else 0 for run in runs}
        self._returns = dict(returns)
        self._time_left = time_left
        self._drawn = -DRAW_EVERY_S
        # drawn by the thread that changes what is drawn
        self._live = Live(console=console, get_renderable=self._picture, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()
            self.console.print(self._picture())

    def refresh(self) -> None:
        """Draw again if the last time is half a second ago."""
        now = time.monotonic()
        if self.console.is_terminal and now - self._drawn >= DRAW_EVERY_S:
            self._drawn = now
            self._live.refresh()

    def progress(self, progress: Progress) -> None:
        """A run is under way."""
        self._running.add(progress.run)
        self._steps[progress.run] = progress.step
        if progress.latest_return is not None:
            self._returns[progress.run] = progress.latest_return
        if progress.step:
            self._time_left.saw(self._runs[progress.run], progress.step)

    def ended(self, run: str, outcome: Outcome | None, latest_return: float | None) -> None:
        """A run is not under way any more; no outcome stands for one that was interrupted."""
        self._running.discard(run)
        if outcome is None:
            return
        self._outcomes[run] = outcome
        self._steps[run] = self._runs[run].config.steps
        if latest_return is not None:
            self._returns[run] = latest_return
        told = outcome.error or (f"return {latest_return:.4g}" if latest_return is not None else "")
        done = f"{len(self._outcomes):>{len(str(len(self._runs)))}}/{len(self._runs)}"
        if not self.console.is_terminal or outcome.status != "finished":
            self.say(f"{done} {outcome.status}  {run}  {told}  {self._left()}")

    def say(self, line: str) -> None:
        """Leave a line."""
        self.console.print(line.rstrip(), markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        open_runs = [run for run in self._runs.values() if run.id not in self._outcomes]
        if not open_runs:
            return ""
        remaining = {run.id: max(0, run.config.steps - self._steps[run.id]) for run in open_runs}
        left = self._time_left.seconds(remaining, open_runs)
        return "" if left is None else f"about {span(left)} left"

    def _picture(self) -> Group:
        """What is under way; then every variant, or every setting where that would be more than a screen; then the bar."""
        width, height = self.console.size
        room = height - 2  # the bar, and the line of the cursor
        running = self._under_way(width)
        if running:
            running = [*_fitting(running, max(2, room // 2)), Text()]
        room -= len(running)
        table = self._variants(width)
        if len(table) > room:
            table = self._settings(width, room)
        return Group(*running, *table, self._bar())

    def _under_way(self, width: int) -> list[Text]:
        rows: list[Row] = []
        for setting, variants in by_setting(run for run in self._runs.values() if run.id in self._running).items():
            rows.append((setting, ()))
            for variant, runs in variants.items():
                rows += [
                    (
                        f"  {variant}, seed {run.config.seed}",
                        (str(self._steps[run.id]), str(run.config.steps), self._mean_return([run])),
                    )
                    for run in runs
                ]
        return listing(("under way", ("step", "of", "return")), rows, width=width) if rows else []

    def _variants(self, width: int) -> list[Text]:
        rows: list[Row] = []
        for setting, variants in by_setting(self._runs.values()).items():
            rows.append((setting, ()))
            rows += [
                (f"  {variant}", (*self._counts(runs), self._mean_return(runs))) for variant, runs in variants.items()
            ]
        return listing(("runs", (*COUNTS, "latest return")), rows, width=width)

    def _settings(self, width: int, room: int) -> list[Text]:
        """In the order of the grid; where they do not fit, those under way and then those with something left to do."""
        settings = {
            setting: [run for runs in variants.values() for run in runs]
            for setting, variants in by_setting(self._runs.values()).items()
        }
        chosen = list(settings)
        if 1 + len(settings) > room:
            chosen = sorted(settings, key=lambda setting: self._interest(settings[setting]))[: max(0, room - 2)]
        rows = [(setting, self._counts(runs)) for setting, runs in settings.items() if setting in chosen]
        more = len(settings) - len(rows)
        return listing(("runs", COUNTS), rows, width=width) + ([Text(f"and {more} more")] if more else [])

    def _interest(self, runs: Sequence[GridRun]) -> int:
        if any(run.id in self._running for run in runs):
            return 0
        return 2 if all(run.id in self._outcomes for run in runs) else 1

    def _counts(self, runs: Iterable[GridRun]) -> tuple[str, str, str]:
        every = list(runs)
        status = [outcome.status for run in every if (outcome := self._outcomes.get(run.id))]
        finished = status.count("finished")
        return str(finished or ""), str(len(status) - finished or ""), str(len(every))

    def _mean_return(self, runs: Iterable[GridRun]) -> str:
        known = [self._returns[run.id] for run in runs if run.id in self._returns]
        return f"{statistics.fmean(known):.4g}" if known else "-"

    def _bar(self) -> Table:
        total = sum(run.config.steps for run in self._runs.values())
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=total, completed=sum(self._steps.values()), width=40),
            Text(f"{len(self._outcomes)}/{len(self._runs)} runs"),
            Text(self._left()),
        )
        return bar


def _fitting(lines: list[Text], room: int) -> list[Text]:
    """As many as there is room for; the last one then tells how many are left out."""
    if len(lines) <= room:
        return lines
    return [*lines[: room - 1], Text(f"and {len(lines) - room + 1} more")]


def span(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3 h 20 min."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
