"""One grid that tests of several files look at."""

import shutil
from pathlib import Path

import pytest

from tests.benchmarks.experiments.grids import TASKS, call, write_grid
from tests.conftest import MadeOnce


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where processes find the tasks of the tests."""
    monkeypatch.chdir(Path(__file__).parents[3])


@pytest.fixture(scope="session")
def mixed(made_once: MadeOnce, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a grid with a run that diverges, one that crashes, and good ones: a copy of one that was run once."""

    def make(directory: Path) -> None:
        grid = write_grid(directory, [f"{TASKS}:NotANumber-v0", f"{TASKS}:Crash-v0", f"{TASKS}:Drift-v0"])
        with pytest.MonkeyPatch.context() as context:
            context.chdir(Path(__file__).parents[3])
            assert call(context, grid, "--out", directory / "out", "--processes", "2") == 1

    return Path(shutil.copytree(made_once("mixed", make), tmp_path_factory.mktemp("mixed") / "grid"))
