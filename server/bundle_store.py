"""Private copies of the bundles that are loaded: a process started later serves these, whatever their directories hold by then."""

import shutil
import tempfile
from collections.abc import Container
from pathlib import Path

from server.bundle import Bundle, load_bundle
from server.errors import BundleError


class BundleStore:
    """Directories named by the version of the bundle they hold."""

    def __init__(self, directory: Path) -> None:
        """In `directory`, which is made."""
        self._directory = directory
        directory.mkdir()

    def path(self, version: str) -> Path:
        """Where the bundle of that version lies, once kept."""
        return self._directory / version

    def keep(self, bundle: Bundle) -> Path:
        """Copies a bundle, unless it is here; returns where. Any thread may, at any time.

        Raises:
            BundleError: there is no room for it, or its manifest was replaced after the bundle was read.
        """
        kept = self.path(bundle.manifest.version)
        if kept.exists():
            return kept
        try:
            copy = Path(tempfile.mkdtemp(dir=self._directory))
            for name, content in bundle.files.items():
                (copy / name).write_bytes(content)
            shutil.copyfile(bundle.path / "manifest.json", copy / "manifest.json")
        except OSError as error:
            raise BundleError(
                f"bundle refused: {bundle.path}: cannot be copied for the workers ({error.strerror}); "
                "make room where temporary files lie, or set TMPDIR"
            ) from error
        try:
            same = load_bundle(copy).manifest.version == bundle.manifest.version
        except BundleError:
            same = False
        if not same:
            raise BundleError(f"bundle refused: {bundle.path}: changed while it was read; load it again")
        try:
            return copy.rename(kept)
        except OSError:
            if not kept.exists():
                raise
            # Another thread has kept the same version meanwhile.
            shutil.rmtree(copy, ignore_errors=True)
            return kept

    def prune(self, versions: Container[str]) -> None:
        """Removes all but these."""
        for path in self._directory.iterdir():
            if path.name not in versions:
                shutil.rmtree(path, ignore_errors=True)
