import dataclasses

import pytest

from server.bundle import load_bundle
from server.bundle_store import BundleStore
from server.errors import BundleError
from tests.server import small_bundle


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
