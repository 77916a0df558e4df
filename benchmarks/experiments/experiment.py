"""Run what a directory lacks of a grid, and keep its tables up to date all the while."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.experiments.engines import Ended, Engine, Job, Progress, Wish
from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.grid import GridRun
from benchmarks.experiments.live import Display
from benchmarks.experiments.plan import directory_of, make_plan
from benchmarks.experiments.record import Outcome, Row, judge, keep_outcome, rows_of
from benchmarks.experiments.results import Results
from benchmarks.experiments.tables import Tables, kept_results
from benchmarks.experiments.time_left import TimeLeft
from dst_core.interruption import Interruption


def run_experiment(
    runs: Sequence[GridRun], *, out: Path, engine: Engine, retry: bool, console: Console
) -> tuple[dict[str, Outcome], int | None]:
    """Do what is not done yet.

    Args:
        runs: of the grid.
        out: directory of the experiment; its tables are rewritten after every run.
        engine: entered.
        retry: whether to repeat diverged and failed runs.
        console: for people.

    Returns:
        How the runs ended, by id, without those not done; and the exit code of an interruption, None if there was none.

    Raises:
        ExperimentError: if the directory holds other runs under these names, is used by another experiment, or cannot be written.
        SystemExit: if interrupted a second time.
    """
    with _sole_use(out), Interruption() as interruption:
        kept = kept_results(out)
        plan = make_plan(runs, out=out, kept=kept, retry=retry)
        tables = Tables(kept)
        for run in plan.unwritten:
            tables.put(*rows_of(run, plan.done[run.id], directory_of(out, run)))
        tables.write(out)
        outcomes = dict(plan.done)
        by_id = {run.id: run for run in plan.todo}
        time_left = TimeLeft(processes=engine.processes)
        _tell_paces(time_left, runs, kept)
        jobs = [
            Job(
                run=run.id,
                arguments=run.arguments,
                directory=directory_of(out, run).absolute(),
                anew=run.id in plan.diverged,
            )
            for run in plan.todo
        ]
        display = Display(runs, plan, returns=tables.latest_returns(), time_left=time_left, console=console)
        with display, contextlib.closing(engine.run(jobs)) as events:
            asked = False
            try:
                for event in events:
                    if interruption and not asked:
                        asked = True
                        engine.ask(Wish.STOP)
                        display.say("stopping: runs under way save and end; Ctrl-C again ends them at once")
                    if isinstance(event, Progress):
                        display.progress(event)
                    elif isinstance(event, Ended):
                        run = by_id[event.run]
                        outcome = judge(run, event, directory_of(out, run))
                        curve: list[Row] = []
                        if outcome is not None:
                            keep_outcome(directory_of(out, run), outcome)
                            row, curve = rows_of(run, outcome, directory_of(out, run))
                            tables.put(row, curve)
                            tables.write(out)
                            outcomes[run.id] = outcome
                        display.ended(run.id, outcome, curve[-1]["return_mean"] if curve else None)
                    display.refresh()
            except SystemExit:
                engine.ask(Wish.END)
                raise
        return outcomes, interruption.exit_code if interruption else None


def _tell_paces(time_left: TimeLeft, runs: Sequence[GridRun], kept: Results) -> None:
    by_id = {run.id: run for run in runs}
    for row in kept.runs.iter_rows(named=True):
        if row["run"] in by_id and row["status"] == "finished":
            time_left.knew(by_id[row["run"]], steps=row["steps"], seconds=row["cpu_seconds"])


@contextlib.contextmanager
def _sole_use(out: Path) -> Iterator[None]:
    try:
        out.mkdir(parents=True, exist_ok=True)
        file = os.open(out, os.O_RDONLY)
    except OSError as error:
        raise ExperimentError(f"{out} cannot be written ({error}); choose another --out") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ExperimentError(
            f"another dst-experiment is at work in {out}; wait for its end, or choose another --out"
        ) from None
    finally:
        os.close(file)
