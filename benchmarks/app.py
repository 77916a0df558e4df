"""dst-bench: medians and 99th percentiles of training, inference and serving."""

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from benchmarks import infer, serve, train
from benchmarks.reference_bundle import make_reference_bundle
from benchmarks.timing import Timing, print_json, show
from dst_core.errors import TrainingError
from server.errors import ServingError
from sim_bridge.errors import SimBridgeError


@dataclass(frozen=True, kw_only=True)
class Train:
    """Time one DST update and its parts.

    Examples:
      dst-bench train
      dst-bench train --observation 348 --action 17 --runs 20 --json
    """

    observation: int = 17
    """Observation numbers."""
    action: int = 6
    """Action numbers."""
    hidden: int = 256
    """Width of the hidden layers."""
    batch: int = 256
    """Transitions per update."""
    samples: int = 10
    """Return samples per transition and critic."""
    threads: int = 1
    """Threads of torch."""
    runs: int = 30
    """Timed runs of each part."""
    device: str = "cpu"
    """auto, cpu or cuda."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Infer:
    """Time inference in process, as the server does it.

    Examples:
      dst-bench infer
      dst-bench infer --bundle bundles/pendulum --json
    """

    bundle: Path | None = None
    """Bundle to measure; a barely trained HalfCheetah-v5 policy is made where none is named."""
    runs: int = 1000
    """Timed runs of each row."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Time control round trips through a real server process on loopback.

    Examples:
      dst-bench serve
      dst-bench serve --bundle bundles/pendulum --rate 500 --json
    """

    bundle: Path | None = None
    """Bundle to measure; a barely trained HalfCheetah-v5 policy is made where none is named."""
    runs: int = 1000
    """Timed round trips of each row."""
    rate: float = 100.0
    """Paced rate in Hz."""
    json: bool = False
    """Print JSON instead of a table."""


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Infer, tyro.conf.subcommand("infer")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
)


def main() -> None:
    """Entry point of `dst-bench`."""
    command = tyro.cli(Command, prog="dst-bench", description=__doc__)
    if command.runs < 10:
        sys.exit(f"dst-bench: --runs must be at least 10 for a percentile, got {command.runs}")
    try:
        run(command)
    except (TrainingError, ServingError, SimBridgeError, ValueError) as error:
        sys.exit(f"dst-bench: {error}")


def run(command: Train | Infer | Serve) -> None:
    """Measure and print."""
    if isinstance(command, Train):
        sizes = {name: value for name, value in dataclasses.asdict(command).items() if name != "json"}
        timings, setting = train.measure(**sizes)
        if command.json:
            milliseconds = {timing.name: timing.p50_us / 1000 for timing in timings}
            print_json({"update_ms": {"dst": milliseconds.pop("update")}, "parts_ms": milliseconds, "setting": setting})
        else:
            show("one DST update, eager", timings, setting, unit="ms")
        return
    with _bundle(command.bundle) as bundle:
        if isinstance(command, Infer):
            timings, setting = infer.measure(bundle, runs=command.runs)
        else:
            timings, setting = serve.measure(bundle, runs=command.runs, rate_hz=command.rate)
    if command.json:
        print_json(_percentiles(timings) | {"setting": setting})
    else:
        show(
            "inference in process" if isinstance(command, Infer) else "round trips through the server", timings, setting
        )


def _percentiles(timings: list[Timing]) -> dict[str, Any]:
    return {
        "p50_us": {timing.name: timing.p50_us for timing in timings},
        "p99_us": {timing.name: timing.p99_us for timing in timings},
    }


@contextlib.contextmanager
def _bundle(named: Path | None) -> Iterator[Path]:
    if named is not None:
        yield named
        return
    with tempfile.TemporaryDirectory() as directory:
        with Console(stderr=True).status("making a reference bundle (HalfCheetah-v5, barely trained)"):
            bundle = make_reference_bundle(Path(directory))
        yield bundle
