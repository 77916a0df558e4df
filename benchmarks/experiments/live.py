"""What a person sees of an experiment: a table and a bar on a terminal, a line per finished run elsewhere."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from benchmarks.experiments.engines import Progress
from benchmarks.experiments.grid import GridRun
from benchmarks.experiments.plan import Plan
from benchmarks.experiments.record import Outcome
from benchmarks.experiments.time_left import TimeLeft

ROWS_BESIDE_THE_TABLE = 8


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
        self._groups: dict[tuple[str, str, str], list[str]] = {}
        for run in runs:
            self._groups.setdefault(run.group, []).append(run.id)
        self._outcomes = dict(plan.done)
        self._running: set[str] = set()
        self._steps = {run.id: run.config.steps if run.id in plan.done else 0 for run in runs}
        self._returns = dict(returns)
        self._time_left = time_left
        self._live = Live(console=console, get_renderable=self._picture, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()
            self.console.print(self._picture())

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
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("environment", "perturbation", "variant"):
            table.add_column(column, overflow="fold")
        for column in ("finished", "running", "failed", "of", "latest return"):
            table.add_column(column, justify="right")
        groups = sorted(self._groups, key=self._interest)
        room = max(3, self.console.height - ROWS_BESIDE_THE_TABLE)
        for group in groups[:room]:
            table.add_row(*map(Text, self._row(group)), style="dim" if self._interest(group) == 2 else "")
        total = sum(run.config.steps for run in self._runs.values())
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            ProgressBar(total=total, completed=sum(self._steps.values()), width=40),
            Text(f"{len(self._outcomes)}/{len(self._runs)} runs"),
            Text(self._left()),
        )
        more = [Text(f"and {len(groups) - room} more")] if len(groups) > room else []
        return Group(table, *more, bar)

    def _interest(self, group: tuple[str, str, str]) -> int:
        """Rows that do not fit are those that are done, then those not begun."""
        runs = self._groups[group]
        if any(run in self._running for run in runs):
            return 0
        return 2 if all(run in self._outcomes for run in runs) else 1

    def _row(self, group: tuple[str, str, str]) -> Iterator[str]:
        runs = self._groups[group]
        status = [outcome.status for run in runs if (outcome := self._outcomes.get(run))]
        returns = [self._returns[run] for run in runs if run in self._returns]
        yield from group
        yield str(status.count("finished"))
        yield str(sum(run in self._running for run in runs) or "")
        yield str(status.count("failed") + status.count("diverged") or "")
        yield str(len(runs))
        yield f"{statistics.fmean(returns):.4g}" if returns else "-"


def span(seconds: float) -> str:
    """A duration as people say it: 40 s, 12 min, 3 h 20 min."""
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
