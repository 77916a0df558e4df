import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from tests.server import small_bundle

MadeOnce = Callable[[str, Callable[[Path], None]], Path]


def pytest_collection_finish() -> None:
    """What was imported lives as long as the process: collections, which some libraries ask for themselves, need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MadeOnce:
    """made_once(name, make): a directory that `make` fills once for all processes that run tests; who changes it takes a copy."""
    own = tmp_path_factory.getbasetemp()
    shared = own if worker_id == "master" else own.parent

    def directory(name: str, make: Callable[[Path], None]) -> Path:
        made, unfinished = shared / name, shared / f"{name}-unfinished"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(made)
        return made

    return directory


@pytest.fixture(scope="session")
def torch_policy() -> small_bundle.Policy:
    """The torch modules that `bundle` was exported from."""
    return small_bundle.modules()


@pytest.fixture(scope="session")
def bundle(made_once: MadeOnce, torch_policy: small_bundle.Policy) -> Path:
    """Directory of a small real bundle; tests that change one take a copy."""
    return made_once("bundle", lambda directory: small_bundle.write(directory / "reacher", torch_policy)) / "reacher"
