"""The repository: the bundles named on the command line, loaded again and unloaded while the server runs."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from server.core import Core
from server.errors import BundleError, NotReadyError, ProviderError, UnknownPolicyError
from server.runtime import Runtime
from server.served_policy import ServedPolicy, listed

logger = logging.getLogger(__name__)

Load = Callable[[Path], Runtime]
"""Loads, verifies and warms up the bundle in a directory; called in a thread."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One policy of the repository."""

    name: str
    version: str
    """Empty where not loaded."""
    ready: bool
    reason: str
    """Why it is not ready, or why the version before still serves; else empty."""


class Repository:
    """Loads and unloads the policies of one core. Belongs to its event loop."""

    def __init__(self, core: Core, directories: Mapping[str, Path], load: Load, *, closed: str = "") -> None:
        """Over policies that `core` has loaded.

        Args:
            core: where they are served.
            directories: policy name to the directory its bundle is read from.
            load: reads one.
            closed: why nothing may be loaded or unloaded here; empty where it may.
        """
        self._core = core
        self._closed = closed
        self._directories = directories
        self._load = load
        self._reasons: dict[str, str] = {}
        self._changing = asyncio.Lock()

    def index(self) -> tuple[Entry, ...]:
        """All policies, loaded or not."""
        return tuple(map(self._entry, self._directories))

    def _entry(self, name: str) -> Entry:
        policy = self._core.policies.get(name)
        return Entry(
            name=name,
            version="" if policy is None else policy.manifest.version,
            ready=policy is not None,
            reason=self._reasons.get(name, ""),
        )

    def check_loaded(self, name: str) -> None:
        """Raises NotReadyError where `name` is a policy of the repository that is not loaded."""
        if name in self._directories and name not in self._core.policies:
            raise NotReadyError(f"policy {name!r} is not loaded ({self._reasons.get(name, 'unloaded')}); load it first")

    async def load(self, name: str) -> None:
        """Reads the policy's directory again and serves what it holds; until then the version before is served.

        Raises:
            UnknownPolicyError: no bundle on the command line has that name.
            NotReadyError: the bundle is refused, or the repository closed; what was served still is.
        """
        directory = self._directory(name)
        async with self._changing:
            try:
                runtime = await asyncio.to_thread(self._load, directory)
                _check_name(runtime, name)
            except (BundleError, ProviderError) as error:
                logger.exception("policy %s was not loaded", name)
                # Where the bundle lies is the operator's business, not the client's.
                reason = str(error).replace(f"{directory}/", "").replace(str(directory), "the bundle")
                self._reasons[name] = f"the last load failed: {reason}"
                raise NotReadyError(f"policy {name!r} was not loaded: {reason}") from error
            self._reasons.pop(name, None)
            await self._core.add(ServedPolicy(runtime, clock=self._core.clock))
        logger.info("policy %s: version %s loaded", name, runtime.manifest.version)

    async def unload(self, name: str) -> None:
        """Serves the policy no more; returns when what it had begun is answered. Twice is as good as once.

        Raises:
            UnknownPolicyError: no bundle on the command line has that name.
            NotReadyError: the repository is closed.
        """
        self._directory(name)
        async with self._changing:
            self._reasons[name] = "unloaded"
            if name in self._core.policies:
                await self._core.remove(name)
        logger.info("policy %s: unloaded", name)

    def _directory(self, name: str) -> Path:
        if self._closed:
            raise NotReadyError(f"policies are neither loaded nor unloaded here: {self._closed}")
        if name not in self._directories:
            raise UnknownPolicyError(
                f"no policy of the repository is named {name[:64]!r}; it holds {listed(sorted(self._directories))}"
            )
        return self._directories[name]


def _check_name(runtime: Runtime, name: str) -> None:
    found = runtime.manifest.name
    if found != name:
        raise BundleError(f"the directory holds policy {found!r} now; export {name!r} into it, or restart the server")
