"""What `dst-train --env X` chooses for a task unless a flag says otherwise.

A preset holds for every version of its task. To add one, add an entry: the choices that differ from the plain defaults.
"""

import argparse
import dataclasses
from collections.abc import Sequence

from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig

SWING_UP = AgentConfig(
    hidden=64, samples=6, learning_rate=1e-3, polyak=0.02, discount=0.98, truncate=0.0, gradient_weight=0.1
)

PRESETS: dict[str, TrainConfig] = {
    # Shares of truncation: the paper (arXiv 2601.20071); every other task has 0.10.
    "Hopper": TrainConfig(env="Hopper-v5", agent=AgentConfig(truncate=0.20)),
    "HalfCheetah": TrainConfig(env="HalfCheetah-v5", agent=AgentConfig(truncate=0.0)),
    "Walker2d": TrainConfig(env="Walker2d-v5", agent=AgentConfig(truncate=0.08)),
    "Ant": TrainConfig(env="Ant-v5", agent=AgentConfig(truncate=0.08)),
    "Humanoid": TrainConfig(env="Humanoid-v5", agent=AgentConfig(truncate=0.08)),
    # Small tasks, tuned with dst for one CPU thread.
    "PendulumSwingUp": TrainConfig(
        env="PendulumSwingUp-v0",
        steps=4000,
        warmup_steps=500,
        batch=128,
        evaluate_every=500,
        forecast_updates=1000,
        agent=SWING_UP,
    ),
    "Pendulum": TrainConfig(
        env="Pendulum-v1",
        steps=10_000,
        warmup_steps=500,
        batch=128,
        evaluate_every=500,
        forecast_updates=1500,
        agent=SWING_UP,
    ),
    "InvertedPendulum": TrainConfig(
        env="InvertedPendulum-v5",
        steps=20_000,
        batch=128,
        evaluate_every=1000,
        agent=AgentConfig(hidden=64, samples=6, learning_rate=1e-3, polyak=0.01, gradient_weight=0.1),
    ),
    "InvertedDoublePendulum": TrainConfig(
        env="InvertedDoublePendulum-v5",
        steps=10_000,
        batch=128,
        evaluate_every=1000,
        agent=AgentConfig(
            hidden=64, samples=6, learning_rate=1e-3, critic_learning_rate=1e-2, polyak=0.01, gradient_weight=0.1
        ),
    ),
    **{
        f"PointMass{locations}": TrainConfig(
            env=f"PointMass{locations}-v0",
            steps=6000,
            warmup_steps=500,
            batch=128,
            evaluate_every=500,
            forecast_updates=1500,
            exploration=0.3,  # rewards are a metre away from the start
            agent=dataclasses.replace(SWING_UP, discount=0.95),
        )
        for locations in ("", 1, 2, 4, 8)
    },
}


def preset_of(env: str) -> TrainConfig:
    """The defaults for a task, given by its Gymnasium id; the plain ones where it has no preset."""
    task = env.rpartition(":")[2].rpartition("-v")[0]
    return dataclasses.replace(PRESETS.get(task, TrainConfig(env=env)), env=env)


def chosen_env(arguments: Sequence[str]) -> str | None:
    """The task that a command line names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--env", nargs="?")
    env: str | None = parser.parse_known_args(arguments)[0].env
    return env


def choices_of_preset(config: TrainConfig) -> dict[str, object]:
    """What a configuration has from its task's preset: flag to value, without what flags have overridden."""
    preset, plain = preset_of(config.env), TrainConfig(env=config.env)
    run = _of_preset("--", config, preset, plain)
    return run | _of_preset("--agent.", config.agent, preset.agent, plain.agent)


def _of_preset(
    prefix: str, config: TrainConfig | AgentConfig, preset: TrainConfig | AgentConfig, plain: TrainConfig | AgentConfig
) -> dict[str, object]:
    values = {field.name: getattr(preset, field.name) for field in dataclasses.fields(preset) if field.name != "agent"}
    return {
        prefix + name.replace("_", "-"): value
        for name, value in values.items()
        if value != getattr(plain, name) and value == getattr(config, name)
    }
