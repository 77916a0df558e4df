import shutil
from pathlib import Path

import pytest

from server.bundle import Bundle, load_bundle
from tests.conftest import MadeOnce
from tests.server import small_bundle
from tests.server.running import GatedRuntime, Running


@pytest.fixture(scope="session")
def uncalibrated(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Path:
    """Directory of the same policy as one that was not calibrated and gives no gradient by the observation."""
    return small_bundle.uncalibrated(bundle, tmp_path_factory.mktemp("uncalibrated") / "reacher")


@pytest.fixture(scope="session")
def retrained(made_once: MadeOnce) -> Path:
    """Directory of another version of the same policy."""

    def make(directory: Path) -> None:
        small_bundle.write(directory / "reacher", small_bundle.modules(seed=1))

    return made_once("retrained", make) / "reacher"


@pytest.fixture
def edited(tmp_path: Path, bundle: Path) -> Path:
    """A copy of the bundle to spoil."""
    return Path(shutil.copytree(bundle, tmp_path / "edited"))


@pytest.fixture(scope="session")
def loaded(bundle: Path) -> Bundle:
    return load_bundle(bundle)


@pytest.fixture
def gated(loaded: Bundle) -> GatedRuntime:
    """The real runtime behind a gate that the test opens."""
    return GatedRuntime(loaded, "cpu")


@pytest.fixture(scope="module")
def running(loaded: Bundle):
    """The server with the small policy, computed on the event loop."""
    with Running.of(loaded) as server:
        yield server
