"""The repository as a worker has it: the process in front loads and unloads for all, this one as it is told."""

from collections.abc import Mapping
from pathlib import Path

from server.core import Core
from server.errors import NotReadyError
from server.repository import Change, Load, Repository
from server.worker_link import FrontClient


class WorkerRepository(Repository):
    """Asks the process in front, and does what that one says."""

    def __init__(self, core: Core, reasons: Mapping[str, str], load: Load, front: FrontClient) -> None:
        """Over the policies that `reasons` names, loaded or not."""
        super().__init__(core, {}, load)
        self._reasons.update(reasons)
        self._front = front

    async def load(self, name: str) -> None:
        """As the process in front does for all."""
        await self._ask("load", name)

    async def unload(self, name: str) -> None:
        """As the process in front does for all."""
        await self._ask("unload", name)

    async def _ask(self, change: Change, name: str) -> None:
        self._check_known(name)
        if refusal := await self._front.change(change, name):
            raise NotReadyError(refusal)

    async def prepare(self, name: str, directory: Path) -> str:
        """One after the other: what took too long for the process in front must not come after what was asked for next."""
        async with self._changing():
            return await super().prepare(name, directory)
