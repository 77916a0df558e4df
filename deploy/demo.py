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
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parent.parent
COMMANDS = Path(sys.executable).parent
ENVIRONMENT = "PendulumSwingUp-v0"
NOISE = ["--perturb", "actuation=0.1"]
FIRST_DRIVE_SEED = 2_100_000_000
STOP_TIMEOUT_S = 20
EPISODES = ("--episodes", "200", "--test-episodes", "100")  # a few seconds' worth; dst-export alone takes 1400
SAME_REQUEST_S = 1.0
READY_TIMEOUT_S = 60


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
    children = Children()
    try:
        with children.ended():
            _demo(console, children, seed=arguments.seed, episodes=arguments.episodes)
    except KeyboardInterrupt:
        console.print("\nstopped; nothing is left running")
        return children.exit_code
    except StepError as error:
        console.print(f"[red]{error}[/]")
        return 1
    return 0


def _demo(console: Console, children: "Children", *, seed: int, episodes: int) -> None:
    out = PROJECT / "runs" / time.strftime("demo-%Y%m%d-%H%M%S")
    run, bundle = out / "run", out / "bundle"
    first = FIRST_DRIVE_SEED + seed
    console.rule("1  train")
    children.step(["dst-train", "--env", ENVIRONMENT, *NOISE, "--seed", str(seed), "--out", str(run)])
    console.rule("2  calibrate and export")
    children.step(["dst-calibrate", str(run), *EPISODES])
    children.step(["dst-export", str(run), "--out", str(bundle), "--name", "pendulum-swing-up"])
    console.rule("3  serve and drive")
    grpc, page = children.server(bundle)
    console.print(f"watch the robot at [bold]{page}[/]")
    drive = ["dst-drive", "--server", grpc, "--env", ENVIRONMENT, *NOISE, "--realtime", "--name", "demo-robot"]
    drive += ["--hold-timeout-s", "2"]  # a simulated robot may wait for a machine that is busy with other things
    report, record = out / "drive.json", out / "drive.mcap"
    counted = ["--episodes", str(episodes), "--seed", str(first)]
    children.step([*drive, *counted, "--report", str(report), "--record", str(record)])
    console.rule("result")
    _show(console, json.loads((bundle / "manifest.json").read_text()), json.loads(report.read_text()))
    console.print(f"record of the drive: {record.relative_to(PROJECT)} (opens in Foxglove)", highlight=False)
    if sys.stdout.isatty():
        console.print(f"\nthe robot goes on driving; watch it at [bold]{page}[/], end with Ctrl-C")
        children.step([*drive, "--episodes", "1000000", "--seed", str(first + episodes)])


class Children:
    """The processes of the demo, none of which outlives it.

    They are in process groups of their own, so Ctrl-C on a terminal reaches the demo alone: it raises KeyboardInterrupt here once, and
    each child is asked once to end, with time to save. Ctrl-C again after a second kills them.
    """

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[str]] = []
        self._starting = False
        self._ending = False
        self._signal: int | None = None
        self._asked_s = 0.0
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._interrupt)

    @property
    def exit_code(self) -> int:
        """By the custom of shells, 128 and the number of the signal."""
        return 0 if self._signal is None else 128 + self._signal

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """After the block no child is left."""
        try:
            try:
                yield
            finally:
                self._ending = True
        finally:
            for process in reversed(self._running):
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def step(self, command: list[str]) -> None:
        """Show a command and run it to its end.

        Raises:
            StepError: if it fails.
        """
        code = self._start(command, stdout=None).wait()
        if code != 0:
            raise StepError(f"{command[0]} ended with exit code {code}")

    def server(self, bundle: Path) -> tuple[str, str]:
        """Start the policy server and show what it says up to its ready line.

        Returns:
            Its gRPC address and the page's.

        Raises:
            StepError: if it ends or is not ready in time.
        """
        command = ["dst-serve", str(bundle), "--grpc", _address(50051), "--http", _address(8080)]
        process = self._start(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        overdue = threading.Timer(READY_TIMEOUT_S, process.kill)
        overdue.start()
        try:
            for line in process.stdout:
                if line.startswith("ready "):
                    grpc, page = (part.partition("=")[2] for part in line.split()[1:3])
                    return grpc, page
                print(line, end="", flush=True)
        finally:
            overdue.cancel()
        raise StepError(f"dst-serve did not become ready within {READY_TIMEOUT_S} s")

    def _start(self, command: list[str], *, stdout: int | None) -> "subprocess.Popen[str]":
        print("$", " ".join(command), flush=True)
        self._starting = True
        process = subprocess.Popen(
            [str(COMMANDS / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            text=True,
            process_group=0,
        )
        self._running.append(process)
        self._starting = False
        if self._signal is not None:
            raise KeyboardInterrupt
        return process

    def _interrupt(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._asked_s = number, now
            if not (self._starting or self._ending):
                raise KeyboardInterrupt
        elif now - self._asked_s >= SAME_REQUEST_S:
            for process in self._running:
                process.kill()


def _address(port: int) -> str:
    """The usual loopback port, or any free one where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            port = 0
    return f"127.0.0.1:{port}"


def _show(console: Console, manifest: dict[str, Any], report: dict[str, Any]) -> None:
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
