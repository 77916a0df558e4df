from pathlib import Path

import pytest
from filelock import FileLock

from tests.server import small_bundle


@pytest.fixture(scope="session")
def torch_policy() -> small_bundle.Policy:
    """The torch modules that `bundle` was exported from."""
    return small_bundle.modules()


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, torch_policy: small_bundle.Policy, worker_id: str) -> Path:
    """Directory of a small real bundle, exported once for all processes that run tests; tests that change one take a copy."""
    own = tmp_path_factory.getbasetemp()
    shared = (own if worker_id == "master" else own.parent) / "bundle"
    shared.mkdir(exist_ok=True)
    with FileLock(shared.with_suffix(".lock")):
        if not (shared / "reacher").exists():
            small_bundle.write(shared / "written", torch_policy)
            (shared / "written").rename(shared / "reacher")
    return shared / "reacher"
