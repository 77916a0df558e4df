"""The repository: the bundles named on the command line, loaded again and unloaded while the server runs."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from server.core import Core
from server.errors import BundleError, NotReadyError, ProviderError, UnknownPolicyError
from server.runtime import Runtime
from server.served_policy import ServedPolicy, listed

logger = logging.getLogger(__name__)

Load = Callable[[Path], Runtime]
"""Loads, verifies and warms up the bundle in a directory; called in a thread."""
Change = Literal["load", "unload", "keep"]
"""What becomes of a policy: the one that was prepared is served, or none, or what is served now."""


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
    """Loads and unloads the policies of one core, in two steps: `prepare`, which may fail, then `settle`. Belongs to its event loop."""

    def __init__(self, core: Core, directories: Mapping[str, Path], load: Load) -> None:
        """Over policies that `core` has loaded.

        Args:
            core: where they are served.
            directories: policy name to the directory its bundle is read from.
            load: reads one.
        """
        self._core = core
        self._directories = directories
        self._load = load
        self._reasons = dict.fromkeys(directories, "")
        self._prepared: Runtime | None = None
        self._lock = asyncio.Lock()

    def index(self) -> tuple[Entry, ...]:
        """All policies, loaded or not."""
        return tuple(map(self._entry, self._reasons))

    def _entry(self, name: str) -> Entry:
        policy = self._core.policies.get(name)
        return Entry(
            name=name,
            version="" if policy is None else policy.manifest.version,
            ready=policy is not None,
            reason=self._reasons[name],
        )

    def check_loaded(self, name: str) -> None:
        """Raises NotReadyError where `name` is a policy of the repository that is not loaded."""
        if name in self._reasons and name not in self._core.policies:
            raise NotReadyError(f"policy {name!r} is not loaded ({self._reasons[name]}); load it first")

    def _check_known(self, name: str) -> None:
        if name not in self._reasons:
            raise UnknownPolicyError(
                f"no policy of the repository is named {name[:64]!r}; it holds {listed(sorted(self._reasons))}"
            )

    def _changing(self) -> contextlib.AbstractAsyncContextManager[Any]:
        """Held while something is loaded or unloaded."""
        return self._lock

    async def load(self, name: str) -> None:
        """Reads the policy's directory again and serves what it holds; until then the version before is served.

        Raises:
            UnknownPolicyError: no bundle on the command line has that name.
            NotReadyError: the bundle is refused; what was served still is.
        """
        self._check_known(name)
        async with self._changing():
            refusal = await self.prepare(name, self._directories[name])
            if refusal:
                await self.settle(name, "keep", f"the last load failed: {refusal}")
                raise NotReadyError(f"policy {name!r} was not loaded: {refusal}")
            await self.settle(name, "load", "")

    async def unload(self, name: str) -> None:
        """Serves the policy no more; returns when what it had begun is answered. Twice is as good as once.

        Raises:
            UnknownPolicyError: no bundle on the command line has that name.
        """
        self._check_known(name)
        async with self._changing():
            await self.settle(name, "unload", "unloaded")

    async def prepare(self, name: str, directory: Path) -> str:
        """Reads the bundle that `settle` may then serve; returns why it is refused, nothing where it is not."""
        self._prepared = None
        try:
            runtime = await asyncio.to_thread(self._load, directory)
            _check_name(runtime, name)
        except (BundleError, ProviderError) as error:
            logger.exception("policy %s was not loaded", name)
            # Where the bundle lies is the operator's business, not the client's.
            return str(error).replace(f"{directory}/", "").replace(str(directory), "the bundle")
        self._prepared = runtime
        logger.info("policy %s: version %s read", name, runtime.manifest.version)
        return ""

    async def settle(self, name: str, change: Change, reason: str) -> None:
        """Changes what is served; `reason` is what the index says of it."""
        runtime, self._prepared = self._prepared, None
        self._reasons[name] = reason
        if change == "load":
            assert runtime is not None, "nothing was prepared"
            await self._core.add(ServedPolicy(runtime, clock=self._core.clock))
            logger.info("policy %s: version %s loaded", name, runtime.manifest.version)
        elif change == "unload":
            if name in self._core.policies:
                await self._core.remove(name)
            logger.info("policy %s: unloaded", name)


def _check_name(runtime: Runtime, name: str) -> None:
    found = runtime.manifest.name
    if found != name:
        raise BundleError(f"the directory holds policy {found!r} now; export {name!r} into it, or restart the server")
