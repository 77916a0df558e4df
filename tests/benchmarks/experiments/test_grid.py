"""A grid is read as it is meant, or refused with everything that is wrong with it."""

import dataclasses
import shlex
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

import pytest

from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.flags import AGENT, KINDS, arguments_of, configure
from benchmarks.experiments.grid import GridRun, read_grid
from dst_core.config import TrainConfig
from dst_core.presets import PRESETS, preset_of
from dst_core.train import parse_arguments

GRID = """
seeds = [0, 7]

[variants]
dst = {}
"dst, no Sobolev terms" = { agent = { sobolev = "none", learning_rate = 3e-05 } }
td3 = { batch = 32, agent = { algorithm = "td3" } }

[[sweep]]
environments = ["PointMass1-v0", "Pendulum-v1"]
perturbations = [[], ["observation=0.20", "dropout=1e-3"]]
variants = ["dst", "td3"]
steps = 900
longer = { td3 = 2700 }
train = { evaluate_every = 300, batch = 64, agent = { hidden = 16, truncate = 0 } }

[[sweep]]
environments = ["InvertedPendulum-v5"]
variants = ["dst, no Sobolev terms"]
steps = 2000
seeds = [3]
"""


def read(text: str, directory: Path) -> tuple[GridRun, ...]:
    path = directory / "grid.toml"
    path.write_text(text)
    return read_grid(path)


def faults(text: str, directory: Path) -> list[str]:
    with pytest.raises(ExperimentError) as refused:
        read(text, directory)
    first, *rest = str(refused.value).split("\n  ")
    assert first == f"{directory / 'grid.toml'} has {len(rest)} fault{'s' if len(rest) > 1 else ''}, nothing was run:"
    return rest


def same(config: TrainConfig, other: TrainConfig) -> bool:
    return config.to_json() == other.to_json() and config.device == other.device


def test_runs_are_the_products_of_their_sweeps(tmp_path: Path) -> None:
    names = [run.id for run in read(GRID, tmp_path)]
    noisy = "dropout=0.001 observation=0.2"
    assert names == [
        f"{env}/{perturbation}/{variant}/seed-{seed}"
        for env in ("PointMass1-v0", "Pendulum-v1")
        for perturbation in ("none", noisy)
        for variant in ("dst", "td3")
        for seed in (0, 7)
    ] + ["InvertedPendulum-v5/none/dst, no Sobolev terms/seed-3"]


def test_variant_lies_above_its_sweep_above_the_preset(tmp_path: Path) -> None:
    runs = {run.id: run.config for run in read(GRID, tmp_path)}
    dst, td3 = runs["PointMass1-v0/none/dst/seed-7"], runs["PointMass1-v0/none/td3/seed-0"]
    preset = preset_of("PointMass1-v0")
    agent = dataclasses.replace(preset.agent, hidden=16, truncate=0.0)
    sweep = dataclasses.replace(preset, evaluate_every=300, device="cpu", agent=agent)
    assert dst == dataclasses.replace(sweep, seed=7, steps=900, batch=64)
    assert td3 == dataclasses.replace(sweep, steps=2700, batch=32, agent=dataclasses.replace(agent, algorithm="td3"))
    noisy = runs["PointMass1-v0/dropout=0.001 observation=0.2/dst/seed-0"]
    assert noisy.perturb == ("dropout=0.001", "observation=0.2")


def test_command_of_every_run_gives_its_configuration_and_names_only_what_differs(tmp_path: Path) -> None:
    runs = read(GRID, tmp_path)
    for run in runs:
        program, *arguments = shlex.split(run.command)
        assert program == "dst-train"
        assert same(parse_arguments(arguments), run.config), run.command
    assert runs[-1].command == (
        "dst-train --env InvertedPendulum-v5 --steps 2000 --seed 3 --device cpu --agent.sobolev none --agent.learning-rate 3e-05"
    )


@pytest.mark.parametrize("env", ["PointMass2-v0", "Hopper-v5", "Reacher-v5"])
def test_every_flag_that_a_grid_may_set_reaches_the_command(env: str) -> None:
    """Each on its own takes another value than its preset's."""
    preset, reached = preset_of(env), set()
    for name, kind in KINDS.items():
        of = preset.agent if name.startswith(AGENT) else preset
        usual = getattr(of, name.removeprefix(AGENT))
        if get_origin(kind) is UnionType:
            others = [0.01, 2.0]
        elif get_origin(kind):
            others = [choice for choice in get_args(kind) if choice != usual]
        else:
            others = [not usual] if kind is bool else [usual + 1, usual / 2 + 0.01 if kind is float else usual + 2]
        for value in others:
            try:
                config = configure(env, {"agent.bandwidth": 5.0, name: value}, steps=5000, perturb=())
            except ValueError:  # such as a share beyond 1
                continue
            assert same(parse_arguments(arguments_of(config)), config), (name, value)
            reached.add(name)
            break
    assert reached == KINDS.keys()


def test_all_faults_of_a_grid_are_told_at_once(tmp_path: Path) -> None:
    text = """
sedes = [1]
[variants]
dst = { bacth = 3, batch = -1, agent = { hidden = 0, samples = "4", latent = true } }
td3 = { agent = { algorithm = "td4" } }
hybrid = { warmup_steps = 10, batch = 16, agent = { world_model = "hybrid" } }
late = { agent = 3, seed = 4 }
"a/b" = {}
[[sweep]]
environments = ["PointMas1-v0", "PointMass1-v0", "CartPole-v1"]
perturbations = [[], ["wind=1"], ["friction=0.1"], ["dropout=2"], []]
variants = ["dst", "hybrid", "sac"]
steps = 300
longer = { mage = 5, dst = 600 }
train = { env = "x", exploration = -1.0 }
[[sweep]]
environments = []
perturbations = ["observation=0.2"]
seeds = [1, 5000, 1]
steps = "many"
rewards = 1
[[sweep]]
environments = ["Pendulum-v1", "InvertedPendulum-v5"]
variants = ["hybrid"]
steps = 12
seeds = [0]
"""
    told = faults(text, tmp_path)
    expected = [
        "variant 'dst': dst-train has no flag bacth; did you mean batch?",
        "variant 'dst': agent.samples must be a whole number, got '4'",
        "variant 'dst': agent.latent must be a whole number, got True",
        "variant 'td3': agent.algorithm must be one of dst, td3, tqc, mage, iqn, mmd, got 'td4'",
        "variant 'late': agent must be a table such as { hidden = 64 }, got 3",
        "variant 'late': seed cannot be set here: it comes from seeds",
        "variant 'a/b': its name must be fit for a directory: no '/', no spaces at its ends",
        "unknown entry 'sedes'; a grid has seeds, variants, sweep",
        "sweep 1: seeds are missing; give seeds = [0, 1, 2] to it, or once at the top of the grid",
        "sweep 1: unknown variant 'sac'; [variants] has dst, td3, hybrid, late, a/b",
        "sweep 1: longer names 'mage', which is no variant of this sweep",
        "sweep 1: perturbation must be one of friction, ",
        "sweep 1: scale of perturbation 'dropout' must be a probability",
        "sweep 1: perturbations name none twice",
        "sweep 1, train: env cannot be set here: it comes from the sweep's environments",
        "sweep 1: environment must be a registered Gymnasium id, got 'PointMas1-v0'; did you mean PointMass1-v0",
        "variant 'dst': agent.hidden must be at least 1, got 0",
        "sweep 1, train: exploration must be finite and not negative, got -1.0",
        "variant 'dst': batch must be at least 1, got -1",
        "sweep 1: perturbation 'friction' must have a MuJoCo task, got 'PointMass1-v0'",
        "sweep 1: action space of CartPole-v1 must be a flat Box",
        "sweep 2: unknown entry 'rewards'; a sweep has environments, ",
        "sweep 2: seeds must be whole numbers in 0..1999, got 5000",
        "sweep 2: seeds name 1 twice",
        "sweep 2: variants must be a list of at least one name, they are missing",
        "sweep 2: steps must be a whole number of at least 1, got 'many'",
        "sweep 2: environments must be a list of at least one name, got []",
        "sweep 2: perturbations must be a list of lists such as ",
        "sweep 3, 'hybrid' in Pendulum-v1: steps must fill at least one batch (16), got 12",
        "sweep 3, 'hybrid' in InvertedPendulum-v5: steps must fill at least one batch (16), got 12",
    ]
    for message, start in zip(told, expected, strict=True):
        assert message.startswith(start)


def test_what_only_the_task_can_refuse_is_told_too(tmp_path: Path) -> None:
    text = """
seeds = [0, 1]
[variants]
hybrid = { agent = { world_model = "hybrid" } }
[[sweep]]
environments = ["Pendulum-v1", "InvertedPendulum-v5"]
variants = ["hybrid"]
steps = 2000
"""
    (told,) = faults(text, tmp_path)
    assert told.startswith("sweep 1, 'hybrid' in Pendulum-v1: ")
    assert "hybrid" in told.partition(": ")[2]


def test_runs_that_appear_twice_are_refused(tmp_path: Path) -> None:
    again = GRID + '[[sweep]]\nenvironments = ["Pendulum-v1"]\nvariants = ["dst"]\nsteps = 5000\nseeds = [7, 8]\n'
    assert faults(again, tmp_path) == [
        "sweep 3: Pendulum-v1/none/dst/seed-7 is already a run of sweep 1; name its variant differently"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at least one variant"),
        ("[variants]\ndst = {}", r"at least one \[\[sweep\]\]"),
        ("variants = ]", "is no TOML: .*line 1"),
    ],
)
def test_what_is_no_grid_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=message):
        read(text, tmp_path)
    with pytest.raises(ExperimentError, match="cannot be read: No such file"):
        read_grid(tmp_path / "none.toml")


def test_presets_are_of_tasks_that_exist(tmp_path: Path) -> None:
    """So that no preset makes a grid impossible by itself."""
    names = ", ".join(f'"{preset.env}"' for preset in PRESETS.values())
    text = (
        f'seeds = [0]\n[variants]\ndst = {{}}\n[[sweep]]\nenvironments = [{names}]\nvariants = ["dst"]\nsteps = 5000\n'
    )
    assert len(read(text, tmp_path)) == len(PRESETS)
