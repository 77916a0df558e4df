"""dst-bench: medians and 99th percentiles of training, inference and serving.

Exit codes: 0 measured, 2 refused or failed with the reason, 130 Ctrl-C.
"""

import contextlib
import dataclasses
import math
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from benchmarks import answers, growth, infer, serve, serve_growth, train
from benchmarks.answers import show_answers
from benchmarks.errors import BenchmarkError
from benchmarks.reference_bundle import make_reference_bundles
from benchmarks.timing import Timing, print_json, show
from benchmarks.verdicts import show_loads, show_verdicts, verdicts
from dst_core.errors import TrainingError
from dst_core.sobolev_loss import Distance
from server.errors import ServingError
from sim_bridge.errors import SimBridgeError

MIN_RUNS = 10
MAX_ROBOTS = 64
SERVED_SAMPLES = 32
INFER_SAMPLES = (8, SERVED_SAMPLES, 128)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Time one DST update and its parts, beside its plain form, TD3 and TQC of Stable-Baselines3, and the floor of its products.

    Examples:
      dst-bench train
      dst-bench train --observation 348 --action 17 --runs 20 --json
      dst-bench train --samples 80 --distance max-sliced-mmd --no-compiled
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
    distance: Distance = "mmd"
    """Distance of laws."""
    threads: int = 1
    """Threads of torch, for all."""
    compiled: bool = True
    """Compile DST's update where there is a C++ compiler; takes a minute unless it is cached."""
    runs: int = 30
    """Timed runs of each part."""
    device: str = "cpu"
    """auto, cpu or cuda."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        for name in ("observation", "action", "hidden", "batch", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        _require_runs(self.runs)


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Time DST updates at growing sizes, eager and in float32: what grows how fast. Takes minutes.

    Examples:
      dst-bench growth
      dst-bench growth --runs 10 --json
      dst-bench growth --figure docs/performance/growth
    """

    threads: int = 1
    """Threads of torch."""
    runs: int = 10
    """Timed runs at each size, fewer at sizes that take seconds."""
    figure: Path | None = None
    """Also draw the curves to FIGURE.svg and FIGURE.png."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"--threads must be at least 1, got {self.threads}")
        _require_runs(self.runs)


@dataclass(frozen=True, kw_only=True)
class Infer:
    """Time inference in process, as the server does it, and policy.onnx beside its matrix products alone.

    Examples:
      dst-bench infer
      dst-bench infer --bundle bundles/pendulum --json
    """

    bundle: Path | None = None
    """Bundle to measure; a barely trained Walker2d-v5 policy is made where none is named, with 8, 32 and 128 samples."""
    runs: int = 1000
    """Timed runs of each row."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        _require_runs(self.runs)


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Time control round trips through a real server process on loopback, in turn with what they are held against.

    Examples:
      dst-bench serve
      dst-bench serve bundles/pendulum --rate 500 --json
      dst-bench serve --peers --robots 8
      dst-bench serve --robots 8 --load-s 600
    """

    bundle: Annotated[Path | None, tyro.conf.Positional] = None
    """Bundle to measure; a barely trained Walker2d-v5 policy is made where none is named."""
    runs: int = 1000
    """Timed calls of each row, paced and again back to back."""
    rate: float = 100.0
    """Paced rate in Hz."""
    robots: int = 1
    """More than one: afterwards so many robots ask at the rate at once, of every server."""
    load_s: float = 10.0
    """For so many seconds."""
    peers: bool = False
    """Also install and measure openpi's wire, MLServer, KServe and LitServe with the same ONNX file."""
    peers_dir: Path | None = None
    """Where the peers' environments are kept; ~/.cache/dst/peers where none is named."""
    json: bool = False
    """Print JSON instead of tables."""

    def __post_init__(self) -> None:
        _require_runs(self.runs)
        _require_rate(self.rate)
        if not (math.isfinite(self.load_s) and self.load_s * self.rate >= MIN_RUNS):
            raise ValueError(f"--load-s must be a finite number that holds {MIN_RUNS} ticks, got {self.load_s}")
        if not 1 <= self.robots <= MAX_ROBOTS:
            raise ValueError(f"--robots must lie between 1 and {MAX_ROBOTS}, got {self.robots}")


@dataclass(frozen=True, kw_only=True)
class ServeGrowth:
    """Time control round trips with growing numbers of robots and samples, and growing policies. Takes minutes.

    Examples:
      dst-bench serve-growth
      dst-bench serve-growth --figure docs/performance/serving
    """

    runs: int = 300
    """Timed calls of each client at each size."""
    rate: float = 10.0
    """Of every robot where they are many, in Hz; 64 of them must be within what the cores can ask and answer."""
    figure: Path | None = None
    """Also draw the curves to FIGURE.svg and FIGURE.png."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        _require_runs(self.runs)
        _require_rate(self.rate)


def _require_runs(runs: int) -> None:
    if runs < MIN_RUNS:
        raise ValueError(f"--runs must be at least {MIN_RUNS} for a percentile, got {runs}")


def _require_rate(rate: float) -> None:
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"--rate must be a finite number > 0, got {rate}")


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Growth, tyro.conf.subcommand("growth")]
    | Annotated[Infer, tyro.conf.subcommand("infer")]
    | Annotated[Serve, tyro.conf.subcommand("serve")]
    | Annotated[ServeGrowth, tyro.conf.subcommand("serve-growth")]
)


def main() -> int:
    """Entry point of `dst-bench`."""
    try:
        run(tyro.cli(Command, prog="dst-bench", description=__doc__))
    except (BenchmarkError, TrainingError, ServingError, SimBridgeError, ValueError) as error:
        print(f"dst-bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def run(command: Train | Growth | Infer | Serve | ServeGrowth) -> None:
    """Measure and print."""
    if isinstance(command, Train):
        sizes = {name: value for name, value in dataclasses.asdict(command).items() if name != "json"}
        updates, parts, setting = train.measure(**sizes)
        if command.json:
            milliseconds = {
                name: {timing.key: timing.p50_us / 1000 for timing in timings}
                for name, timings in (("update_ms", updates), ("parts_ms", parts))
            }
            print_json({**milliseconds, "setting": setting})
        else:
            show("one update", updates, {}, unit="ms")
            show("parts of DST's", parts, setting, unit="ms")
        return
    if isinstance(command, Growth):
        updates, distances, setting = growth.measure(threads=command.threads, runs=command.runs)
        if command.figure is not None:
            _draw_growth(updates, command.figure)
        if command.json:
            milliseconds = {
                name: {timing.key: timing.p50_us / 1000 for timing in timings}
                for name, timings in (("update_ms", updates), ("distance_ms", distances))
            }
            print_json({**milliseconds, "setting": setting})
        else:
            show("one DST update, eager, float32", updates, {}, unit="ms")
            show("its distance alone, with the gradient by the samples", distances, setting, unit="ms")
        return
    if isinstance(command, Infer):
        with _bundles(command.bundle, samples=INFER_SAMPLES) as bundles:
            _infer(bundles, command)
        return
    if isinstance(command, ServeGrowth):
        _serve_growth(command)
        return
    _serve(command)


def _serve_growth(command: ServeGrowth) -> None:
    timings, late, setting = serve_growth.measure(runs=command.runs, rate_hz=command.rate)
    if command.figure is not None:
        _draw_serve_growth(timings, command.figure)
    if command.json:
        print_json(_percentiles(timings) | {"late_share": late, "setting": setting})
    else:
        show("paced round trips", timings, {f"late share, {key}": share for key, share in late.items()} | setting)


def _draw_serve_growth(timings: list[Timing], stem: Path) -> None:
    try:
        from benchmarks.serve_growth_figure import draw  # noqa: PLC0415 (matplotlib is optional)
    except ImportError as error:
        raise BenchmarkError("--figure needs matplotlib: pip install 'dst-policy-server[experiment]'") from error
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        draw(serve_growth.curves(timings), stem)
    except OSError as error:
        raise BenchmarkError(f"the figure cannot be written: {error}; choose another --figure") from error


def _serve(command: Serve) -> None:
    with _bundles(command.bundle, samples=(SERVED_SAMPLES,)) as (bundle,):
        found = serve.measure(
            bundle,
            runs=command.runs,
            rate_hz=command.rate,
            robots=command.robots,
            load_s=command.load_s,
            peers=command.peers,
            peers_directory=command.peers_dir,
        )
    for name, reason in found.left_out.items():
        print(f"dst-bench: {name} is left out: {reason}", file=sys.stderr)
    if command.json:
        load = {"load": {key: one.numbers() for key, one in found.loads.items()}} if found.loads else {}
        print_json(_percentiles(found.timings) | {"late_share": found.late_share} | load | {"setting": found.setting})
        return
    show("round trips through the server", found.timings, found.setting)
    if found.loads:
        show_loads(found.loads, robots=command.robots, rate_hz=command.rate)
    show_verdicts(verdicts(found.timings, late_share=found.late_share, ready_s=found.ready_s, loads=found.loads))


def _infer(bundles: list[Path], command: Infer) -> None:
    served = bundles[INFER_SAMPLES.index(SERVED_SAMPLES)] if len(bundles) > 1 else bundles[0]
    timings, setting = infer.measure(served, runs=command.runs)
    found = answers.measure(bundles, batches=infer.BATCHES, runs=command.runs)
    if command.json:
        graphs = [timing for answer in found for timing in (answer.policy, answer.products, answer.actor)]
        ratios = {f"batch_{answer.batch}_samples_{answer.samples}": answer.ratio for answer in found}
        print_json(_percentiles([*timings, *graphs]) | {"policy_over_products": ratios, "setting": setting})
        return
    show("inference in process", timings, {})
    show_answers(found)
    print(", ".join(f"{name} {value}" for name, value in setting.items()))


def _draw_growth(updates: list[Timing], stem: Path) -> None:
    try:
        from benchmarks.growth_figure import draw  # noqa: PLC0415 (matplotlib is optional)
    except ImportError as error:
        raise BenchmarkError("--figure needs matplotlib: pip install 'dst-policy-server[experiment]'") from error
    milliseconds = {timing.key: timing.p50_us / 1000 for timing in updates}
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {
        axis: {kind: [(size, milliseconds[f"{axis}_{size}_{kind}"]) for size in sizes] for kind in growth.DISTANCES}
        for axis, sizes in growth.AXES.items()
    }
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        draw(curves, stem)
    except OSError as error:
        raise BenchmarkError(f"the figure cannot be written: {error}; choose another --figure") from error


def _percentiles(timings: list[Timing]) -> dict[str, Any]:
    return {
        "p50_us": {timing.key: timing.p50_us for timing in timings},
        "p99_us": {timing.key: timing.p99_us for timing in timings},
    }


@contextlib.contextmanager
def _bundles(named: Path | None, *, samples: tuple[int, ...]) -> Iterator[list[Path]]:
    """The bundle that is named, or a reference bundle for each number of samples."""
    if named is not None:
        yield [named]
        return
    with tempfile.TemporaryDirectory() as directory:
        with Console(stderr=True).status("making reference bundles (Walker2d-v5, barely trained)"):
            bundles = make_reference_bundles(Path(directory), samples=samples)
        yield bundles
