"""dst-train --evaluate-critic: fit the evaluation critic of a finished run again."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from dst_core.errors import DivergedError
from dst_core.evaluation_critic import fit_evaluation_critic
from dst_core.execution import Execution, keep_compiled_code, using_threads
from dst_core.interruption import Interruption
from dst_core.metrics import Metrics
from dst_core.progress import TrainingProgress
from dst_core.run import choose_device, load_run

FLAG = "--evaluate-critic"
DESCRIPTION = """Fit the evaluation critic of a finished run again: the law that dst-export serves. Everything else stays as it is.

The same call gives the same critic; with as many updates as in training, the one the run ended with. Ctrl-C leaves the old one as it was.

example:
  dst-train --evaluate-critic --out runs/pendulum --forecast-updates 4000
"""


@dataclass(frozen=True, kw_only=True)
class EvaluateCriticConfig:
    """Which run, and how long."""

    out: Path
    """Directory of the finished run; every other choice is read from there."""
    forecast_updates: int | None = None
    """Updates of the evaluation critic; as many as in training unless given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks live; auto takes CUDA where there is one."""

    def __post_init__(self) -> None:
        if self.forecast_updates is not None and self.forecast_updates < 1:
            raise ValueError(f"forecast_updates must be at least 1, got {self.forecast_updates}")


def evaluate_critic(config: EvaluateCriticConfig) -> int:
    """Fit as configured, and save.

    Returns:
        0 when done, 130 when interrupted by SIGINT, 143 by SIGTERM.

    Raises:
        TrainingError: if there is no finished run of dst, or it cannot be saved; it is then as it was.
        DivergedError: if the critic is not finite; the old one stays.
    """
    run = load_run(config.out, choose_device(config.device))
    execution = Execution.kept(run.progress["execution"], device=run.replay.device)
    if execution.compiled:
        keep_compiled_code()
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        progress = stack.enter_context(TrainingProgress(run.config, start=run.progress["step"]))
        stack.enter_context(using_threads(execution.threads))
        metrics = Metrics(config.out, step=run.progress["step"], size=run.progress["metrics_size"])
        stack.callback(metrics.close)
        progress.execution(execution)
        try:
            done = fit_evaluation_critic(
                run,
                updates=config.forecast_updates or run.config.forecast_updates,
                execution=execution,
                progress=progress,
                metrics=metrics,
                interrupted=lambda: bool(interruption),
            )
        except DivergedError as error:
            raise DivergedError(f"{error}. The evaluation critic in {config.out} is as it was") from error
        if not done:
            progress.say(f"stopped; the evaluation critic in {config.out} is as it was")
            return interruption.exit_code
        run.progress["metrics_size"] = metrics.size
        run.save(config.out)
        progress.say(f"fitted; export with dst-export {config.out}")
    return 0


def parse_evaluate_critic(arguments: Sequence[str]) -> EvaluateCriticConfig:
    """The configuration of a command line with `--evaluate-critic` in it.

    Raises:
        ValueError: if a choice is outside its range.
    """
    rest = [argument for argument in arguments if argument != FLAG]
    return tyro.cli(EvaluateCriticConfig, prog=f"dst-train {FLAG}", description=DESCRIPTION, args=rest)
