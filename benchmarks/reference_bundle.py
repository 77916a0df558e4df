"""A real bundle to measure with, where the user names none: Walker2d-v5 (17 observations, 6 actions), barely trained."""

import contextlib
import io
from pathlib import Path

from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig
from dst_core.export import ExportConfig, export
from dst_core.train import train


def make_reference_bundle(directory: Path, *, env: str = "Walker2d-v5", hidden: int = 256, samples: int = 32) -> Path:
    """Train a few updates and export; speed does not depend on how good the policy is.

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
    run, bundle = directory / "run", directory / "bundle"
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
    with contextlib.redirect_stdout(io.StringIO()):
        if train(config) != 0:  # saved after a signal
            raise KeyboardInterrupt
    export(ExportConfig(run=run, out=bundle, name="reference", samples=samples))
    return bundle
