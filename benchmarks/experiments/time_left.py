"""How long an experiment still takes, from what its runs have taken so far."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.experiments.grid import GridRun

Group = tuple[str, str]


@dataclass
class _Pace:
    steps: float = 0.0
    seconds: float = 0.0


@dataclass(kw_only=True)
class TimeLeft:
    """Paces by environment and variant; a group without one of its own is taken to go at the mean pace of the others."""

    processes: int
    clock: Callable[[], float] = time.monotonic
    _paces: dict[Group, _Pace] = field(default_factory=dict)
    _looked: dict[str, tuple[int, float]] = field(default_factory=dict)
    """Step and time at the last look, by run."""

    def saw(self, run: GridRun, step: int) -> None:
        """Count the steps of a run since it was last seen."""
        now = self.clock()
        before = self._looked.get(run.id)
        self._looked[run.id] = (step, now)
        if before is not None and step >= before[0]:  # less where a lost attempt begins again
            self._add(run, steps=step - before[0], seconds=now - before[1])

    def knew(self, run: GridRun, *, steps: int, seconds: float) -> None:
        """Count a run of an earlier time."""
        self._add(run, steps=steps, seconds=seconds)

    def _add(self, run: GridRun, *, steps: int, seconds: float) -> None:
        pace = self._paces.setdefault((run.environment, run.variant), _Pace())
        pace.steps += steps
        pace.seconds += seconds

    def seconds(self, remaining: Mapping[str, int], runs: Iterable[GridRun]) -> float | None:
        """Time left.

        Args:
            remaining: steps still to do, by run id.
            runs: those with steps still to do.

        Returns:
            Seconds, or None as long as no run has made a step.
        """
        known = {group: pace.seconds / pace.steps for group, pace in self._paces.items() if pace.steps > 0}
        if not known:
            return None
        usual = sum(known.values()) / len(known)
        of_runs = [remaining[run.id] * known.get((run.environment, run.variant), usual) for run in runs]
        return max(sum(of_runs) / self.processes, max(of_runs, default=0.0))
