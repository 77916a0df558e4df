"""The whole path on one machine: train a small policy, export it, serve it, drive a simulated robot with it, watch it on a page.

Every step is the project's own command in a process of its own. On a terminal the robot goes on driving and the page stays open until
Ctrl-C; without one the demo ends by itself.
"""

import argparse
import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parent.parent
COMMANDS = Path(sys.executable).parent
ENVIRONMENT = "PendulumSwingUp-v0"
NOISE = ["--perturb", "actuation=0.1"]
TRAINING = [
    *(
        "--steps",
        "4000",
        "--warmup-steps",
        "500",
        "--batch",
        "128",
        "--evaluate-every",
        "500",
        "--forecast-updates",
        "1500",
    ),
    *("--agent.hidden", "64", "--agent.samples", "6", "--agent.learning-rate", "1e-3", "--agent.polyak", "0.02"),
    *("--agent.discount", "0.98", "--agent.truncate", "0", "--agent.gradient-weight", "0.1"),
]
STOP_TIMEOUT_S = 20
READY_TIMEOUT_S = 60
INTERRUPTED = 130


class StepError(Exception):
    """A step did not succeed; its own message stands above."""


def main() -> int:
    """Run the demo.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="seed of training and driving")
    parser.add_argument("--episodes", type=int, default=2, help="episodes driven before the table")
    arguments = parser.parse_args()
    console = Console()
    signal.signal(signal.SIGTERM, _interrupt)
    out = PROJECT / "runs" / time.strftime("demo-%Y%m%d-%H%M%S")
    run, bundle = out / "run", out / "bundle"
    try:
        console.rule("1  train")
        _step(["dst-train", "--env", ENVIRONMENT, *NOISE, *TRAINING, "--seed", str(arguments.seed), "--out", str(run)])
        console.rule("2  export")
        _step(["dst-export", str(run), "--out", str(bundle), "--name", "pendulum-swing-up"])
        console.rule("3  serve and drive")
        with _server(bundle) as (grpc, page):
            console.print(f"watch the robot at [bold]{page}[/]")
            drive = ["dst-drive", "--server", grpc, "--env", ENVIRONMENT, *NOISE, "--realtime", "--name", "demo-robot"]
            report, record = out / "drive.json", out / "drive.mcap"
            counted = ["--episodes", str(arguments.episodes), "--seed", str(arguments.seed)]
            _step([*drive, *counted, "--report", str(report), "--record", str(record)])
            console.rule("result")
            _show(console, json.loads((bundle / "manifest.json").read_text()), json.loads(report.read_text()))
            console.print(f"record of the drive: {record.relative_to(PROJECT)} (opens in Foxglove)", highlight=False)
            if sys.stdout.isatty():
                console.print(f"\nthe robot goes on driving; watch it at [bold]{page}[/], end with Ctrl-C")
                _step([*drive, "--episodes", "1000000", "--seed", str(arguments.seed + 1)])
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is left running")
        return INTERRUPTED
    except StepError as error:
        console.print(f"[red]{error}[/]")
        return 1
    return 0


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _step(command: list[str]) -> None:
    """Show a command, run it to its end, and end it if we are interrupted."""
    print("$", " ".join(command), flush=True)
    process = subprocess.Popen([str(COMMANDS / command[0]), *command[1:]])
    with _ended(process):
        code = process.wait()
    if code != 0:
        raise StepError(f"{command[0]} ended with exit code {code}")


@contextlib.contextmanager
def _server(bundle: Path) -> Iterator[tuple[str, str]]:
    """The policy server while the block runs; gives its gRPC address and the page's."""
    command = ["dst-serve", str(bundle), "--grpc", _address(50051), "--http", _address(8080)]
    print("$", " ".join(command), flush=True)
    process = subprocess.Popen([str(COMMANDS / command[0]), *command[1:]], stdout=subprocess.PIPE, text=True)
    with _ended(process):
        yield _wait_ready(process)


def _wait_ready(process: "subprocess.Popen[str]") -> tuple[str, str]:
    """Show the server's output up to its ready line."""
    assert process.stdout is not None
    deadline = time.monotonic() + READY_TIMEOUT_S
    for line in process.stdout:
        if line.startswith("ready "):
            grpc, page = (part.partition("=")[2] for part in line.split()[1:3])
            return grpc, page
        print(line, end="", flush=True)
        if time.monotonic() > deadline:
            break
    raise StepError("dst-serve did not become ready")


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[str] | subprocess.Popen[bytes]") -> Iterator[None]:
    """Make sure that the process is gone afterwards; Ctrl-C has reached it too, so it first gets time to save."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(port: int) -> str:
    """The usual loopback port, or any free one where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            port = 0
    return f"127.0.0.1:{port}"


def _show(console: Console, manifest: dict, report: dict) -> None:
    evaluation, trip = manifest["evaluation"], report["round_trip_us"]
    table = Table(show_header=False)
    table.add_row("return before training", f"{evaluation['untrained_return_mean']:.0f}")
    table.add_row(
        "return after training", f"{evaluation['return_mean']:.0f} over {evaluation['episodes']} held-out episodes"
    )
    table.add_row(
        "return driven through the server", f"{report['return_mean']:.0f} over {len(report['episodes'])} episodes"
    )
    table.add_row("control round trip", f"p50 {trip['p50'] / 1000:.2f} ms, p99 {trip['p99'] / 1000:.2f} ms")
    table.add_row("missed ticks", f"{report['late_ticks']} of {report['ticks']} at {report['rate_hz']:.0f} Hz")
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
