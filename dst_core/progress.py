"""What a person sees while a policy trains: a bar with return, losses and speed on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dst_core.config import TrainConfig
from dst_core.critic_bias import CriticBias
from dst_core.evaluate import Evaluation
from dst_core.execution import EAGER, Execution


class TrainingProgress:
    """Progress of one run on standard output."""

    def __init__(self, config: TrainConfig, *, start: int) -> None:
        self.console = Console(soft_wrap=True)
        self.updates = 0
        self._since = time.monotonic()
        self._return = "return -"
        self._losses = "critic -"
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(
            config.env, total=config.steps, completed=start, state="", visible=start < config.steps
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    @property
    def updates_per_s(self) -> float:
        """Updates per second since the run was started or resumed."""
        return self.updates / max(time.monotonic() - self._since, 1e-9)

    def execution(self, execution: Execution) -> None:
        """Say how updates are computed, where that is not the plain way."""
        if execution != EAGER:
            form = "compiled" if execution.compiled else "eager"
            wait = "; the first takes up to a minute unless it was compiled before" if execution.compiled else ""
            self.say(f"updates are {form}, matrix products in {execution.precision}, threads {execution.threads}{wait}")

    def compiled(self) -> None:
        """Say how long the first updates took, and count the rest from here."""
        taken_s = time.monotonic() - self._since
        self.say(
            f"first {self.updates} updates, with compiling them or loading them from the cache, took {taken_s:.0f} s"
        )
        self.updates, self._since = 0, time.monotonic()

    def step(self, step: int) -> None:
        """Show that this many environment steps are done."""
        state = f"{self._return}  {self._losses}  {self.updates_per_s:.0f} updates/s"
        self._bar.update(self._task, completed=step, state=state)

    def episode_return(self, value: float) -> None:
        """Show the return of the latest episode with exploration."""
        self._return = f"return {value:.1f}"

    def losses(self, critic: float, model: float | None) -> None:
        """Show the latest losses of critics and of the world model, where there is one."""
        self._losses = f"critic {critic:.4f}" + ("" if model is None else f" model {model:.2f}")

    def evaluation(self, step: int, result: Evaluation, bias: CriticBias | None) -> None:
        """Leave a line about an evaluation."""
        summary = result.summary()
        of_critic = "" if bias is None else f", critic's bias {bias.mean:.3g}"
        self.say(
            f"step {step:>7}  evaluation return {summary['return_mean']:.1f} ± {summary['return_std']:.1f} "
            f"over {len(result.seeds)} episodes (worst {summary['return_min']:.1f}){of_critic}, "
            f"{self.updates_per_s:.0f} updates/s"
        )

    def say(self, line: str) -> None:
        """Leave a line above the bar."""
        self.console.print(line, markup=False, highlight=False)

    def track_settling(self, updates: int) -> Iterator[int]:
        """Show how the world model settles on the replay while its updates are counted."""
        return self._track("world model", updates)

    def track_rollouts(self, steps: int) -> Iterator[int]:
        """Show the rollouts of the world model, whose returns the evaluation critic is fitted to, while their steps are counted."""
        return self._track("imagined rollouts", steps)

    def track_forecast(self, updates: int) -> Iterator[int]:
        """Show the fit of the evaluation critic while its updates are counted."""
        return self._track("evaluation critic", updates)

    def _track(self, name: str, total: int) -> Iterator[int]:
        task = self._bar.add_task(name, total=total, state="")
        for done in range(total):
            yield done
            self._bar.advance(task)

    def critics(self, compared: dict[str, dict[str, float]], *, episodes: int) -> None:
        """Leave a table: training critics and evaluation critic against the realised discounted returns of the episodes."""
        if not compared:
            self.say(f"the {episodes} evaluation episodes are too short to tell the critics' bias")
            return
        table = Table(title=f"realised discounted returns of {episodes} evaluation episodes", title_justify="left")
        table.add_column()
        for heading in ("less the predicted mean", "within 90 % interval"):
            table.add_column(heading, justify="right")
        for name, law in compared.items():
            bias = f"{law['bias']:.3g} ± {law['bias_std']:.3g}"
            table.add_row(f"{name} critic{'s' if name == 'training' else ''}", bias, f"{law['coverage']:.0%}")
        self.console.print(table, highlight=False)
