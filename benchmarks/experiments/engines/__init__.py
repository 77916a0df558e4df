"""Where the runs of an experiment are computed: an engine takes jobs and tells what becomes of them."""

import enum
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of dst-train."""

    run: str
    """Its id."""
    arguments: tuple[str, ...]
    """Of dst-train, without --out and --resume."""
    directory: Path
    """Of the run, on the machine that asks; a checkpoint in it is gone on from."""
    anew: bool = False
    """Whether to clear the directory before that."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A run is under way."""

    run: str
    step: int
    latest_return: float | None
    """Mean of its latest evaluation."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A run is not under way any more; what it left is in the job's directory."""

    run: str
    code: int | None
    """dst-train's exit code, negative for a signal; None where the engine lost it."""
    error: str = ""
    """The last line of its log, or what the engine has to say."""


class Wish(enum.Enum):
    """What is asked of the runs under way."""

    GO_ON = enum.auto()
    STOP = enum.auto()
    """Save and end."""
    END = enum.auto()
    """At once, without saving."""


class Engine(Protocol):
    """Runs jobs side by side, as a context."""

    @property
    def processes(self) -> int:
        """How many runs are under way at the same time."""

    def run(self, jobs: Sequence[Job]) -> Generator[Progress | Ended | None]:
        """Run all jobs, in their order, and tell; None now and then while there is nothing to tell."""

    def ask(self, wish: Wish) -> None:
        """Stop or end; jobs that are not under way are left out, and `run` ends with the last one under way."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
