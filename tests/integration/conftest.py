import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from dst_core.agent_config import AgentConfig
from dst_core.calibration.app import CalibrateConfig, run_calibration
from dst_core.config import TrainConfig
from dst_core.export import ExportConfig, export
from dst_core.train import train

PERTURBATIONS = ("actuation=0.1", "observation=0.05", "dynamics=0.01")


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `dst-export` makes of a short `dst-train` run on InvertedPendulum-v5, calibrated on few episodes."""
    directory = tmp_path_factory.mktemp("path")
    train(
        TrainConfig(
            env="InvertedPendulum-v5",
            steps=260,
            warmup_steps=200,
            batch=32,
            evaluation_episodes=2,
            forecast_updates=20,
            perturb=PERTURBATIONS,
            device="cpu",
            out=directory / "run",
            agent=AgentConfig(hidden=32, samples=4),
        )
    )
    run_calibration(
        CalibrateConfig(run=directory / "run", samples=16, episodes=120, test_episodes=40), console=Console(quiet=True)
    )
    export(ExportConfig(run=directory / "run", out=directory / "bundle", name="pendulum", samples=16))
    return directory / "bundle"


class ServerProcess:
    """A real `dst-serve` process on free ports."""

    def __init__(self, bundle: Path, *more: str) -> None:
        command = [sys.executable, "-m", "server", str(bundle), "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", *more]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.lines: list[str] = []
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("ready "):
                self.grpc, self.http = (part.partition("=")[2] for part in line.split()[1:3])
                return
        assert self.process.stderr is not None
        pytest.fail("dst-serve did not start: " + self.process.stderr.read())

    def stop(self) -> int:
        self.process.terminate()
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def server(bundle: Path) -> Iterator[ServerProcess]:
    running = ServerProcess(bundle)
    yield running
    running.process.kill()
    running.process.communicate()
