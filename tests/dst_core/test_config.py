import json
from pathlib import Path

import pytest

from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"truncate": 1.0}, r"truncate must lie in \[0, 1\), got 1.0"),
        ({"truncate": -0.1}, "truncate"),
        ({"truncate": 0.95, "samples": 10}, "leave at least 2 of the 20"),
        ({"samples": 1}, "samples must be at least 2"),
        ({"samples": 1, "estimator": "biased"}, "samples must be at least 2: .* evaluation critic"),
        ({"samples": 3, "distance": "max-sliced-mmd"}, "samples must be at least 4"),
        ({"samples": 3, "distance": "max-sliced-mmd", "estimator": "biased"}, "at least 4: .* evaluation critic"),
        ({"algorithm": "mmd", "samples": 1}, "samples must be at least 2"),
        ({"algorithm": "mmd", "samples": 0, "estimator": "biased"}, "samples must be at least 1"),
        ({"algorithm": "mmd", "critics": 1, "samples": 2, "truncate": 0.9}, "leave at least 2 of the 2 target"),
        ({"algorithm": "iqn", "samples": 1, "risk": "mean-std"}, "samples must be at least 2: one has no spread"),
        ({"algorithm": "tqc", "quantiles": 1, "risk": "mean-std"}, "quantiles must be at least 2"),
        ({"risk": "cvar", "risk_level": 0.05}, "samples must be at least 20: the worst 0.05 of fewer"),
        ({"algorithm": "tqc", "risk": "cvar", "risk_level": 0.01}, "quantiles must be at least 100"),
        ({"algorithm": "sac"}, "algorithm must be one of dst, td3, tqc, mage, iqn, mmd, got sac"),
        ({"distance": "sliced"}, "distance must be one of mmd, max-sliced-mmd, got sliced"),
        ({"algorithm": "mmd", "sobolev": "full"}, "through a differentiable world model"),
        ({"algorithm": "td3", "risk": "cvar"}, "risk must be mean for td3"),
        ({"gradient_penalty": -1.0}, "gradient_penalty"),
        ({"kernel": "gaussian"}, "bandwidth must be at most 10 for the gaussian kernel"),
        ({"bandwidth": 0.0}, "bandwidth must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive"),
        ({"critic_learning_rate": 0.0}, "critic_learning_rate must be positive"),
        ({"discount": 1.0}, "discount"),
        ({"polyak": 0.0}, "polyak"),
        ({"risk": "cvar", "risk_level": 0.0}, "risk_level"),
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"gradient_weight": -1.0}, "gradient_weight"),
        ({"gradient_weight": float("inf")}, "gradient_weight must be finite"),
        ({"risk": "mean-std", "risk_level": -0.5}, "risk_level must be finite and not negative"),
        ({"risk": "mean-std", "risk_level": float("nan")}, "risk_level must be finite"),
        ({"risk": "mean-std", "risk_level": float("inf")}, "risk_level must be finite"),
    ],
)
def test_choices_outside_their_range_are_refused_by_name(choice: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentConfig(**choice)


@pytest.mark.parametrize(
    "choice",
    [
        {"algorithm": "td3", "samples": 1},
        {"algorithm": "mage", "samples": 1},
        {"algorithm": "iqn", "samples": 1, "critics": 1},
        {"algorithm": "mmd", "samples": 2, "distance": "max-sliced-mmd"},
        {"estimator": "biased", "critics": 1, "samples": 2, "truncate": 0.5},
    ],
    ids=str,
)
def test_choices_that_an_algorithm_has_no_use_for_do_not_stop_it(choice: dict[str, object]) -> None:
    config = AgentConfig(**choice)
    assert {name: getattr(config, name) for name in choice} == choice


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"seed": 2000}, "seed"),
        ({"device": "gpu"}, "device must be one of auto, cpu, cuda, got gpu"),
        ({"steps": 0}, "steps"),
        ({"replay": 10, "batch": 20}, "hold at least one batch"),
        ({"exploration": -1.0}, "exploration"),
        ({"exploration": float("inf")}, "exploration must be finite"),
        ({"updates_per_step": 0}, "updates_per_step"),
        ({"steps": 1000}, r"steps must exceed warmup_steps \(1000\)"),
        ({"steps": 200, "warmup_steps": 100}, r"steps must fill at least one batch \(256\)"),
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


@pytest.mark.parametrize("field", ["steps", "replay", "perturb", "agent"])
def test_configuration_with_a_missing_field_is_refused_by_name(field: str) -> None:
    plain = TrainConfig(env="Hopper-v5").to_json()
    del plain[field]
    with pytest.raises(ValueError, match=f"{field} is missing"):
        TrainConfig.from_json(plain, out=Path("runs/x"))


def test_agent_configuration_with_a_missing_field_is_refused_by_name() -> None:
    plain = json.loads(json.dumps(TrainConfig(env="Hopper-v5").to_json()))
    del plain["agent"]["polyak"]
    with pytest.raises(ValueError, match="polyak is missing"):
        TrainConfig.from_json(plain, out=Path("runs/x"))


@pytest.mark.parametrize("wrong", [{"agent": 3}, {"steps": "many"}, {"perturb": None}])
def test_configuration_of_wrong_types_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="was edited"):
        TrainConfig.from_json({**TrainConfig(env="Hopper-v5").to_json(), **wrong}, out=Path("runs/x"))
