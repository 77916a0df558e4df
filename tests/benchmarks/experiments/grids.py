"""Small grids, called as from a shell, and what their rows are held against."""

import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from benchmarks.experiments.app import main
from benchmarks.experiments.results import Results
from dst_core.checkpoint import load_checkpoint
from dst_core.train import parse_arguments, train

TASKS = "tests.benchmarks.experiments.tasks"
SMALL = """
warmup_steps = 20, batch = 8, evaluate_every = 20, evaluation_episodes = 2, forecast_updates = 1, checkpoint_every = 10_000,
agent = { hidden = 8, samples = 2, noise_size = 2, latent = 2 }
""".replace("\n", " ")
SPENT = "cpu_seconds"


def write_grid(
    directory: Path, tasks: list[str], *, variants: str = 'td3 = { agent = { algorithm = "td3" } }', steps: int = 40
) -> Path:
    path = directory / "grid.toml"
    names = ", ".join(f'"{task}"' for task in tasks)
    listed = ", ".join(f'"{line.partition(" ")[0]}"' for line in variants.splitlines())
    sweep = f"environments = [{names}]\nvariants = [{listed}]\nsteps = {steps}\ntrain = {{ {SMALL} }}"
    path.write_text(f"seeds = [0]\n[variants]\n{variants}\n[[sweep]]\n{sweep}\n")
    return path


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["dst-experiment", *map(str, arguments)])
    return main()


def curves_of(results: Results, run: str) -> pl.DataFrame:
    return results.curves.filter(pl.col("run") == run).drop(SPENT)


def trained_here(command: str, out: Path) -> list[dict[str, Any]]:
    """Evaluations of the run that a row's command gives."""
    config = parse_arguments([*shlex.split(command)[1:], "--out", str(out)])
    assert train(config) == 0
    _, progress = load_checkpoint(out, torch.device("cpu"))
    return progress["evaluations"]


def require_reproduced(results: Results, run: str, out: Path) -> None:
    (row,) = results.runs.filter(pl.col("run") == run).iter_rows(named=True)
    names = ["step", "return_mean", "return_median", "return_std", "return_min", "critic_bias", "critic_bias_std"]
    expected = [{name: line.get(name) for name in names} for line in trained_here(row["command"], out)]
    assert curves_of(results, run).select(names).rows(named=True) == expected


def wait_until(holds: Callable[[], bool], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


def has_steps(directory: Path) -> bool:
    """Whether training is under way, by a log that has more than its first evaluation."""
    log = directory / "metrics.jsonl"
    return log.exists() and log.read_bytes().count(b'"episode"') >= 2


@contextlib.contextmanager
def signalled(holds: Callable[[], bool], *, again_after_s: float | None = None) -> Iterator[None]:
    """Ctrl-C for this process as soon as something holds, and again for one that will not wait."""

    def wait_and_signal() -> None:
        wait_until(lambda: left.is_set() or holds())
        if left.is_set():
            return
        os.kill(os.getpid(), signal.SIGINT)
        if again_after_s is not None and not left.wait(again_after_s):
            os.kill(os.getpid(), signal.SIGINT)

    left = threading.Event()
    thread = threading.Thread(target=wait_and_signal)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
