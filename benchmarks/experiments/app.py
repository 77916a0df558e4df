"""dst-experiment: run a grid of environments, perturbations, variants and seeds."""

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import tyro
from rich.console import Console

from benchmarks.experiments.engines import Engine
from benchmarks.experiments.engines.local import LocalEngine, cores
from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.experiment import run_experiment
from benchmarks.experiments.grid import GridRun, by_setting, read_grid
from benchmarks.experiments.listing import Row, listing
from benchmarks.experiments.plan import make_plan
from benchmarks.experiments.process import LOG_FILE
from benchmarks.experiments.record import Outcome
from benchmarks.experiments.results import CURVES_FILE, RESULTS_FILE, RUNS_DIRECTORY
from benchmarks.experiments.tables import kept_results

QUICK: Final = Path(__file__).parents[2] / "docs/results/quick.toml"
DESCRIPTION = f"""Run a grid of environments, perturbations, variants and seeds of dst-train, one core each.

examples:
  dst-experiment --quick --out runs/quick                              (minutes; then dst-report runs/quick)
  dst-experiment docs/results/grid.toml --out runs/results --dry-run   (what would run)
  dst-experiment docs/results/grid.toml --out runs/results             (again after Ctrl-C: goes on)
  dst-experiment docs/results/grid.toml --out runs/results --only PointMass2-v0/none/dst/
  dst-experiment docs/results/grid.toml --out runs/results --engine ray --ray-address 10.0.0.1:6379
  dst-report runs/results --out docs/results.md                        (the page of what is done so far)

a grid:
  seeds = [0, 1, 2, 3, 4]
  [variants]                     # flags of dst-train
  dst = {{}}
  td3 = {{ agent = {{ algorithm = "td3" }} }}
  [[sweep]]
  environments = ["PointMass1-v0", "PointMass2-v0"]
  perturbations = [[], ["observation=0.2"]]
  variants = ["dst", "td3"]
  steps = 6000
  longer = {{ td3 = 24000 }}       # steps of some variants, for a comparison at equal computing time
  train = {{ evaluate_every = 500, agent = {{ hidden = 64 }} }}   # above the task's preset, below the variant
  seeds = [0, 1, 2]              # instead of those above

Every run is a process of dst-train in DIR/{RUNS_DIRECTORY}/ENVIRONMENT/PERTURBATION/VARIANT/seed-N, with its log in {LOG_FILE}.
DIR/{RESULTS_FILE} and DIR/{CURVES_FILE} are rewritten after each. Runs with a row there or a finished directory are not done again;
those under way go on from their checkpoint.

Exit codes: 0 all runs of the grid are finished, 1 all are done and some diverged or failed, 2 refused with the reason, 130 Ctrl-C (143
SIGTERM).
"""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """See DESCRIPTION."""

    grid: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[GRID]")] = None
    """TOML file that names what to run."""
    quick: bool = False
    """Run docs/results/quick.toml of this project."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    """Directory of the experiment; one that holds part of it is completed."""
    engine: Literal["local", "ray"] = "local"
    """Where runs are computed: in processes on this machine, or as tasks of Ray."""
    processes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Runs at the same time; one per core unless given."""
    ray_address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Ray cluster to use, every node with this project installed; a local one is started unless given."""
    retry: bool = False
    """Repeat runs that diverged (from their first step) or failed (from their checkpoint)."""
    only: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Only runs with this text in environment/perturbation/variant/seed-N."""
    dry_run: bool = False
    """Show what would run, and run nothing."""

    def __post_init__(self) -> None:
        if (self.grid is None) != self.quick:
            raise ValueError("name one grid, such as docs/results/grid.toml, or give --quick")
        if self.processes is not None and self.processes < 1:
            raise ValueError(f"--processes must be at least 1, got {self.processes}")
        if self.ray_address is not None and self.engine != "ray":
            raise ValueError("--ray-address needs --engine ray")


def main() -> int:
    """Entry point of `dst-experiment`."""
    try:
        return run(tyro.cli(Experiment, prog="dst-experiment", description=DESCRIPTION))
    except ExperimentError as error:
        print(f"dst-experiment: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def run(experiment: Experiment) -> int:
    """Run or show the grid.

    Returns:
        The exit code.

    Raises:
        ExperimentError: if it cannot be run.
        SystemExit: if interrupted twice.
    """
    console = Console()
    with console.status("checking the grid"):
        runs = _chosen(read_grid(experiment.grid or QUICK), experiment)
    if experiment.dry_run:
        _show_plan(runs, experiment, console)
        return 0
    with _engine(experiment) as engine:
        outcomes, interrupted = run_experiment(
            runs, out=experiment.out, engine=engine, retry=experiment.retry, console=console
        )
    return _summary(runs, outcomes, interrupted, experiment, console)


def _chosen(runs: Sequence[GridRun], experiment: Experiment) -> Sequence[GridRun]:
    if experiment.only is None:
        return runs
    chosen = [run for run in runs if experiment.only in run.id]
    if not chosen:
        raise ExperimentError(
            f"no run has {experiment.only!r} in its name, such as {runs[0].id}; --dry-run without --only shows all"
        )
    return chosen


def _engine(experiment: Experiment) -> Engine:
    if experiment.engine == "local":
        return LocalEngine(experiment.processes or cores())
    from benchmarks.experiments.engines.ray import RayEngine  # noqa: PLC0415 (optional)

    processes = experiment.processes or (cores() if experiment.ray_address is None else None)
    return RayEngine(address=experiment.ray_address, processes=processes)


def _show_plan(runs: Sequence[GridRun], experiment: Experiment, console: Console) -> None:
    plan = make_plan(runs, out=experiment.out, kept=kept_results(experiment.out), retry=experiment.retry)
    to_do = {run.id for run in plan.todo}
    rows: list[Row] = []
    for setting, variants in by_setting(runs).items():
        rows.append((setting, ()))
        for variant, members in variants.items():
            status = [plan.done[member.id].status for member in members if member.id in plan.done]
            counts = (
                len(members),
                " or ".join(map(str, sorted({member.config.steps for member in members}))),
                sum(member.id in to_do for member in members),
                sum(member.id in plan.under_way for member in members),
                status.count("finished"),
                len(status) - status.count("finished"),
            )
            rows.append((f"  {variant}", [str(count or "") for count in counts]))
    titles = ("seeds", "steps", "to run", "resumed", "finished", "failed")
    for line in listing(("runs", titles), rows, width=console.width):
        console.print(line)
    steps = sum(one.config.steps for one in plan.todo)
    console.print(f"{len(plan.todo)} of {len(runs)} runs to do, {steps} environment steps; nothing was run")


def _summary(
    runs: Sequence[GridRun],
    outcomes: dict[str, Outcome],
    interrupted: int | None,
    experiment: Experiment,
    console: Console,
) -> int:
    status = [outcome.status for outcome in outcomes.values()]
    bad = [(run, outcome) for run, outcome in outcomes.items() if outcome.status != "finished"]
    lines = [f"{outcome.status}  {run}" for run, outcome in bad]
    lines.append(
        f"{status.count('finished')} of {len(runs)} runs finished, {status.count('diverged')} diverged, "
        f"{status.count('failed')} failed; tables in {experiment.out}"
    )
    if bad:
        where = experiment.out / RUNS_DIRECTORY
        lines.append(f"their errors are in {RESULTS_FILE}, their logs {where}/.../{LOG_FILE}; --retry repeats them")
    left = len(runs) - len(outcomes)
    if left:
        lines.append(f"{left} not done; the same command goes on")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if interrupted is not None:
        return interrupted
    return 1 if bad or left else 0


if __name__ == "__main__":
    sys.exit(main())
