"""One repository over several processes: what one is asked to load or unload, all do, or none.

A worker that is asked tells the process in front. That one reads and verifies the bundle first, then has all workers do so while they
go on serving what they serve, and only when all have it do all serve it. Who does not follow then is ended, and comes up with it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from server.bundle_store import BundleStore
from server.core import Core
from server.errors import NotReadyError
from server.repository import Change, Load, Repository
from server.worker_link import LOAD_TIMEOUT_S
from server.workers import Workers


class FrontRepository(Repository):
    """In the process in front."""

    def __init__(
        self, core: Core, directories: Mapping[str, Path], load: Load, *, workers: Workers, store: BundleStore
    ) -> None:
        """As `Repository`; `load` keeps in `store` what it reads, for the workers to read it there."""
        super().__init__(core, directories, load)
        self._workers = workers
        self._store = store

    @contextlib.asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """Raises NotReadyError while a worker is missing: it would come up with what was loaded when it was started."""
        try:
            await asyncio.wait_for(self._workers.changing.acquire(), LOAD_TIMEOUT_S)
        except TimeoutError as error:
            raise NotReadyError("another policy is being loaded; try again") from error
        try:
            if missing := self._workers.missing:
                raise NotReadyError(f"nothing can be loaded or unloaded now: {missing}; try again")
            yield
        finally:
            self._workers.changing.release()

    async def prepare(self, name: str, directory: Path) -> str:
        """In all processes; the refusal says which refused."""
        try:
            refusal = await asyncio.wait_for(super().prepare(name, directory), LOAD_TIMEOUT_S)
        except TimeoutError:
            return f"it was not read within {LOAD_TIMEOUT_S:.0f} s"
        if self._prepared is None:
            return refusal
        return await self._workers.prepare(name, self._store.path(self._prepared.manifest.version))

    async def settle(self, name: str, change: Change, reason: str) -> None:
        """In all processes."""
        prepared = self._prepared
        kept = None if prepared is None or change != "load" else self._store.path(prepared.manifest.version)
        await asyncio.gather(super().settle(name, change, reason), self._workers.settle(name, change, reason, kept))
        self._store.prune({policy.manifest.version for policy in self._core.policies.values()})
