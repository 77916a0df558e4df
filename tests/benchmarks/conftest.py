"""A small policy, trained and exported once for all measurements."""

from pathlib import Path

import pytest

from benchmarks import reference_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("reference")
    return reference_bundle.make_reference_bundle(directory, env="InvertedPendulum-v5", hidden=16, samples=4)
