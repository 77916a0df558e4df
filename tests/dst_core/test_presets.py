"""Presets: defaults of a task that every flag overrides."""

import ast
import inspect
import re
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import get_args

import gymnasium
import pytest

from dst_core.actor import Risk
from dst_core.agent_config import AgentConfig, Algorithm, WorldModel
from dst_core.config import TrainConfig
from dst_core.presets import PRESETS, choices_of_preset, preset_of
from dst_core.train import DESCRIPTION, parse_arguments
from sim_bridge.tasks.perturbations import PERTURBATIONS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("env", "share"),
    [
        ("Hopper-v5", 0.20),
        ("Hopper-v4", 0.20),
        ("HalfCheetah-v5", 0.0),
        ("Walker2d-v5", 0.08),
        ("Ant-v5", 0.08),
        ("Humanoid-v5", 0.08),
        ("Swimmer-v5", 0.10),
        ("HumanoidStandup-v5", 0.10),
    ],
)
def test_truncation_is_the_paper_s(env: str, share: float) -> None:
    assert parse_arguments(["--env", env]).agent.truncate == share
    assert parse_arguments([f"--env={env}"]).agent.truncate == share


def test_flags_override_the_preset_wherever_they_stand() -> None:
    config = parse_arguments(["--agent.truncate", "0.3", "--env", "Hopper-v5", "--steps", "5000"])
    assert (config.agent.truncate, config.steps) == (0.3, 5000)
    assert choices_of_preset(config) == {}
    swing_up = parse_arguments(["--env", "PendulumSwingUp-v0", "--batch", "64"])
    assert swing_up.batch == 64
    assert swing_up.agent == preset_of("PendulumSwingUp-v0").agent
    told = choices_of_preset(swing_up)
    assert "--batch" not in told
    assert told["--agent.polyak"] == swing_up.agent.polyak


def test_configuration_built_in_python_keeps_the_plain_defaults() -> None:
    assert TrainConfig(env="Hopper-v5").agent == AgentConfig()
    assert preset_of("Reacher-v5") == TrainConfig(env="Reacher-v5")
    assert choices_of_preset(TrainConfig(env="Reacher-v5")) == {}


def test_every_preset_is_of_a_task_that_exists_and_changes_something() -> None:
    for name, preset in PRESETS.items():
        assert preset.env.rpartition("-v")[0] == name
        assert preset.env in gymnasium.registry
        assert choices_of_preset(preset), name


def test_help_shows_the_defaults_of_the_task_and_what_can_be_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "400")

    def shown(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            parse_arguments([*arguments, "--help"])
        return capsys.readouterr().out

    hopper, plain = shown("--env", "Hopper-v5"), shown()
    assert "(default: 0.2)" in hopper
    assert "(default: Hopper-v5)" in hopper
    assert "(default: 0.1)" in plain
    assert "(required)" in plain
    for name in (*PRESETS, *PERTURBATIONS, "examples:", "--resume", "arXiv 2601.20071"):
        assert name in plain
        assert name in DESCRIPTION


SOURCES = ("DST", "TD3", "TQC", "MAGE", "IQN", "MMDQ", "PETS", "NSF", "DDPG", "SVG", "Gretton", "Rockafellar")


def explanations(config: type[TrainConfig | AgentConfig]) -> dict[str, str]:
    """Docstring of every field, empty where there is none."""
    (body,) = (node.body for node in ast.parse(inspect.getsource(config)).body if isinstance(node, ast.ClassDef))
    found = {entry.name: "" for entry in fields(config)}
    for entry, text in pairwise(body):
        if isinstance(entry, ast.AnnAssign) and isinstance(text, ast.Expr):
            found[ast.unparse(entry.target)] = " ".join(ast.literal_eval(text.value).split())
    return found


def test_help_explains_every_choice(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for prefix, config in (("--", TrainConfig), ("--agent.", AgentConfig)):
        for name, text in explanations(config).items():
            assert len(text) > 20, name
            if name != "agent":
                assert f"{prefix}{name.replace('_', '-')}" in shown
                assert text in shown, name


def test_every_choice_of_the_method_names_its_source() -> None:
    for name, text in explanations(AgentConfig).items():
        given = " ".join(re.findall(r"\(([^()]*)\)", text))
        assert any(source in given for source in (*SOURCES, "this project")), f"{name}: {text}"
    for source in SOURCES:
        assert re.search(rf"\b{source}\b[^;]*(arXiv [0-9.]+|[0-9]{{4}})", DESCRIPTION), source


@pytest.mark.parametrize(
    ("choice", "name"),
    [
        *(("algorithm", name) for name in get_args(Algorithm)),
        *(("world_model", name) for name in get_args(WorldModel)),
        *(("risk", name) for name in get_args(Risk)),
    ],
)
def test_every_name_of_a_choice_that_is_a_method_has_a_source_of_its_own(choice: str, name: str) -> None:
    text = explanations(AgentConfig)[choice]
    assert re.search(rf"\b{name}\b[^()]*\([^()]*({'|'.join((*SOURCES, 'this project'))})[^()]*\)", text), text


def test_help_says_which_tasks_the_hybrid_world_model_can_know() -> None:
    text = explanations(AgentConfig)["world_model"]
    for words in ("hinge and slide joints", "whole state", "not Ant", "not Reacher"):
        assert words in text
