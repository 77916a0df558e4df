"""A real bundle to measure with, where the user names none: Walker2d-v5 (17 observations, 6 actions), barely trained."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from dst_core.agent_config import AgentConfig
from dst_core.calibration.calibrate import calibrate
from dst_core.calibration.result import CalibrationConfig
from dst_core.config import TrainConfig
from dst_core.export import ExportConfig, export
from dst_core.run import load_run
from dst_core.served_law import served_law
from dst_core.train import train

FEW = CalibrationConfig(episodes=40, test_episodes=2, false_alarm_rate=0.05)


def make_reference_bundle(directory: Path, *, env: str = "Walker2d-v5", hidden: int = 256, samples: int = 32) -> Path:
    """Train a few updates, calibrate on few episodes and export; speed does not depend on how good the policy is.

    Args:
        directory: an empty one.
        env: Gymnasium id.
        hidden: width of the networks.
        samples: joint samples behind a summary.

    Returns:
        The bundle's directory.

    Raises:
        KeyboardInterrupt: if training was interrupted.
    """
    (bundle,) = make_reference_bundles(directory, env=env, hidden=hidden, samples=(samples,))
    return bundle


def make_reference_bundles(
    directory: Path, *, samples: Sequence[int], env: str = "Walker2d-v5", hidden: int = 256
) -> list[Path]:
    """The same for several numbers of samples, of one policy."""
    run = directory / "run"
    config = TrainConfig(
        env=env,
        steps=150,
        warmup_steps=140,
        batch=64,
        evaluation_episodes=1,
        forecast_updates=10,
        device="cpu",
        out=run,
        agent=AgentConfig(hidden=hidden),
    )
    bundles = []
    with contextlib.redirect_stdout(io.StringIO()):
        if train(config) != 0:  # saved after a signal
            raise KeyboardInterrupt
    trained, quiet = load_run(run), Progress(console=Console(quiet=True))
    for count in samples:
        calibrate(trained, served_law(trained, samples=count), FEW, progress=quiet).write(run)
        bundles.append(directory / f"bundle-{count}")
        export(ExportConfig(run=run, out=bundles[-1], name="reference", samples=count))
    return bundles
