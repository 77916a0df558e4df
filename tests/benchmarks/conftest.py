"""A small policy, trained and exported once for all measurements."""

import contextlib
import io
from pathlib import Path

import pytest

from benchmarks import reference_bundle
from tests.conftest import MadeOnce


@pytest.fixture(scope="session")
def bundles(made_once: MadeOnce) -> list[Path]:
    """With 4 and with 8 samples."""

    def make(directory: Path) -> None:
        with contextlib.redirect_stdout(io.StringIO()) as said:
            reference_bundle.make_reference_bundles(directory, env="InvertedPendulum-v5", hidden=16, samples=(4, 8))
        assert said.getvalue() == "", "that is where JSON goes"

    directory = made_once("reference", make)
    return [directory / "bundle-4", directory / "bundle-8"]


@pytest.fixture(scope="session")
def bundle(bundles: list[Path]) -> Path:
    return bundles[0]
