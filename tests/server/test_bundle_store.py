import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from server import bundle_store
from server.bundle import load_bundle
from server.bundle_store import BundleStore
from server.errors import BundleError
from tests.server import small_bundle
from tests.server.running import PATIENCE_S


@pytest.fixture
def store(tmp_path):
    return BundleStore(tmp_path / "store")


def test_what_is_kept_is_the_bundle_whatever_becomes_of_its_directory(store, edited):
    bundle = load_bundle(edited)
    kept = store.keep(bundle)
    for file in edited.iterdir():
        file.unlink()
    again = load_bundle(kept)
    assert (again.manifest, again.files) == (bundle.manifest, bundle.files)
    assert store.keep(bundle) == kept == store.path(bundle.manifest.version)


def test_threads_that_keep_the_same_bundle_at_once_all_get_it(store, loaded, monkeypatch):
    """All are let past the question whether it is here before any of them has put it there."""
    verified, read = threading.Barrier(3), bundle_store.load_bundle

    def load_together(path):
        verified.wait(PATIENCE_S)
        return read(path)

    monkeypatch.setattr(bundle_store, "load_bundle", load_together)
    with ThreadPoolExecutor(3) as pool:
        kept = set(pool.map(store.keep, [loaded] * 3))
    assert kept == {store.path(loaded.manifest.version)}
    assert [path.name for path in store.path("").iterdir()] == [loaded.manifest.version]


def test_what_is_not_named_is_removed(store, loaded):
    kept = store.keep(loaded)
    store.prune({loaded.manifest.version})
    assert kept.exists()
    store.prune(())
    assert not kept.exists()


@pytest.mark.parametrize("name", ["reacher", "walker"])
def test_bundle_that_changed_while_it_was_read_is_refused(store, bundle, tmp_path, name):
    other = small_bundle.uncalibrated(bundle, tmp_path / "other", name=name)
    torn = dataclasses.replace(load_bundle(bundle), path=other)
    with pytest.raises(BundleError, match="changed while it was read; load it again"):
        store.keep(torn)


def test_bundle_without_room_is_refused_with_the_cure(store, loaded):
    (store.path("x")).parent.rmdir()
    with pytest.raises(BundleError, match=r"cannot be copied for the workers .*TMPDIR"):
        store.keep(loaded)
