import json
from pathlib import Path

import pytest

from dst_core.config import AgentConfig, TrainConfig


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"truncate": 1.0}, r"truncate must lie in \[0, 1\), got 1.0"),
        ({"truncate": -0.1}, "truncate"),
        ({"truncate": 0.95, "samples": 10}, "leave at least 2 of the 20"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"bandwidth": 0.0}, "bandwidth must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"discount": 1.0}, "discount"),
        ({"polyak": 0.0}, "polyak"),
        ({"risk": "cvar", "risk_level": 0.0}, "risk_level"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"gradient_weight": -1.0}, "gradient_weight"),
    ],
)
def test_choices_outside_their_range_are_refused_by_name(choice: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentConfig(**choice)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"seed": 2000}, "seed"),
        ({"steps": 0}, "steps"),
        ({"replay": 10, "batch": 20}, "hold at least one batch"),
        ({"exploration": -1.0}, "exploration"),
        ({"updates_per_step": 0}, "updates_per_step"),
    ],
)
def test_runs_outside_their_range_are_refused_by_name(choice: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(env="InvertedPendulum-v5", **choice)


def test_configuration_survives_json() -> None:
    config = TrainConfig(
        env="Hopper-v5", perturb=("actuation=0.1",), agent=AgentConfig(truncate=0.2, sobolev="full"), out=Path("x")
    )
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json())), out=Path("x")) == config


def test_configuration_of_another_version_is_refused() -> None:
    plain = TrainConfig(env="Hopper-v5").to_json()
    plain["agent"]["momentum"] = 0.9
    with pytest.raises(ValueError, match="momentum"):
        TrainConfig.from_json(plain, out=Path("runs/x"))
