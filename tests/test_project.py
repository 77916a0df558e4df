"""The project as a whole: its lock file, its commands, its import rules, and nothing of the machine it was written on."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS = PROJECT["project"]["scripts"]


def direct_dependencies() -> list[Requirement]:
    groups = PROJECT["project"]["optional-dependencies"].values()
    lines = [*PROJECT["project"]["dependencies"], *(line for group in groups for line in group)]
    return [
        requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["project"]["name"]
    ]  # fmt: skip


def locked() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for pin in pins:
        assert [specifier.operator for specifier in pin.specifier] == ["=="], f"{pin} must be pinned exactly"
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}


@pytest.mark.parametrize("dependency", direct_dependencies(), ids=str)
def test_lock_file_pins_every_direct_dependency_within_its_range(dependency: Requirement) -> None:
    version = locked().get(canonicalize_name(dependency.name))
    assert version is not None, f"{dependency.name} is not in requirements.lock; run make lock"
    assert dependency.specifier.contains(version, prereleases=True), f"{dependency} does not admit the locked {version}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_explains_itself(script: str) -> None:
    program = (
        "import sys; from importlib.metadata import EntryPoint; sys.argv = [sys.argv[1], '--help']; "
        f"sys.exit(EntryPoint({script!r}, {SCRIPTS[script]!r}, 'console_scripts').load()())"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program, script], check=False, capture_output=True, text=True, timeout=120
    )
    assert shown.returncode == 0, shown.stderr
    assert f"usage: {script}" in shown.stdout
    assert shown.stderr == ""


def test_import_rules_name_every_module_of_the_robot_side_but_tasks_and_errors() -> None:
    contracts = {contract["name"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
    forbidden = contracts["of the deployed halves the training core knows only the tasks"]["forbidden_modules"]
    robot_side = (ROOT / "sim_bridge").iterdir()
    modules = {
        f"sim_bridge.{path.stem}"
        for path in robot_side
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert modules > {"sim_bridge.tasks", "sim_bridge.errors", "sim_bridge.guard"}
    assert {name for name in forbidden if name.startswith("sim_bridge")} == modules - {
        "sim_bridge.tasks",
        "sim_bridge.errors",
    }


def test_no_file_names_a_directory_of_somebodys_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("only a git checkout says which files are the project's")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True)
    private = re.compile(rb"(?<![\w.:/}-])/(?:home|Users|root|work|tmp)/\w")
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert ROOT / "pyproject.toml" in paths
    contents = {path: path.read_bytes() for path in paths if path.is_file()}
    texts = {path: content for path, content in contents.items() if b"\0" not in content}
    assert [str(path.relative_to(ROOT)) for path, content in texts.items() if private.search(content)] == []


@pytest.mark.parametrize("half", ["server", "sim_bridge"])
@pytest.mark.parametrize(
    ("given", "found"), [(None, "-event_engine_client,-event_engine_listener"), ("", ""), ("other", "other")]
)
def test_how_grpc_reads_is_set_before_it_is_imported_unless_the_user_has_decided(half, given, found):
    environment = {name: value for name, value in os.environ.items() if name != "GRPC_EXPERIMENTS"}
    if given is not None:
        environment["GRPC_EXPERIMENTS"] = given
    program = f"import sys, {half}, os; assert 'grpc' not in sys.modules; print(os.environ['GRPC_EXPERIMENTS'])"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == found + "\n"
