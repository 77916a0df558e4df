"""A training run of a second."""

from pathlib import Path

from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig

SMALL = AgentConfig(hidden=16, noise_size=4, latent=2, samples=3)


def small_run(out: Path, **changes: object) -> TrainConfig:
    """Sixty steps of InvertedPendulum-v5, forty of them random, with one evaluation."""
    choices = {
        "env": "InvertedPendulum-v5",
        "steps": 60,
        "warmup_steps": 40,
        "batch": 16,
        "evaluation_episodes": 2,
        "evaluate_every": 50,
        "forecast_updates": 5,
        "device": "cpu",
        "agent": SMALL,
        "out": out,
    }
    return TrainConfig(**{**choices, **changes})
