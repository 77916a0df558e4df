"""The transport-neutral core: the policies that are loaded, and the promises made. Every wire asks here."""

import asyncio
import time
from collections.abc import Callable, Sequence

from server.admission import Admission
from server.errors import BundleError, InvalidInputError, NotReadyError, ShuttingDownError, UnknownPolicyError
from server.question import Clock
from server.served_policy import ServedPolicy, listed

Watcher = Callable[[str, ServedPolicy | None], None]
"""Told the name of a policy that was loaded, and the policy; or None where it was unloaded."""

NOTHING_LOADED = "no policy is loaded; load one"


class Core:
    """The loaded policies, by name."""

    def __init__(self, policies: Sequence[ServedPolicy], *, clock: Clock = time.monotonic_ns) -> None:
        """Raises BundleError where two policies have one name."""
        self.clock = clock
        self.policies: dict[str, ServedPolicy] = {}
        self.accepting = True
        self.missing: Callable[[], str] = str
        """Says what the whole server lacks though this process answers: other processes of it. Nothing where it is complete."""
        self.admission = Admission()
        self.watchers: list[Watcher] = []
        for policy in policies:
            name = policy.manifest.name
            if name in self.policies:
                raise BundleError(
                    f"two bundles hold a policy named {name!r}; serve one of them, or export with another name"
                )
            self.policies[name] = policy

    def policy(self, name: str) -> ServedPolicy:
        """The policy of that name; an empty name means the only one.

        Raises:
            ShuttingDownError: the server accepts nothing new.
            InvalidInputError: the name is empty and several policies are loaded.
            NotReadyError: no policy is loaded at all.
            UnknownPolicyError: no policy has that name.
        """
        if not self.accepting:
            raise ShuttingDownError("server is shutting down")
        if name in self.policies:
            return self.policies[name]
        if not self.policies:
            raise NotReadyError(NOTHING_LOADED)
        loaded = listed(sorted(self.policies))
        if name:
            raise UnknownPolicyError(f"no policy is named {name[:64]!r}; loaded: {loaded}")
        if len(self.policies) > 1:
            raise InvalidInputError(f"policy must be named where several are loaded: {loaded}")
        return next(iter(self.policies.values()))

    def check_ready(self) -> None:
        """Returns where the whole server answers, for one policy at least: others may have been unloaded on purpose.

        A process of it that answers anyway is not refused here.

        Raises:
            ShuttingDownError: it accepts nothing new.
            NotReadyError: a part of it is missing, or no policy is loaded.
        """
        if not self.accepting:
            raise ShuttingDownError("server is shutting down")
        if missing := self.missing():
            raise NotReadyError(missing)
        if not self.policies:
            raise NotReadyError(NOTHING_LOADED)

    async def add(self, policy: ServedPolicy) -> None:
        """Serves a policy from now on, instead of one of the same name; returns when that has answered what it had begun."""
        name = policy.manifest.name
        replaced = self.policies.get(name)
        self.policies[name] = policy
        self._tell(name, policy)
        if replaced is not None:
            await replaced.close()

    async def remove(self, name: str) -> None:
        """Serves a policy no more; returns when it has answered what it had begun. Its sessions end with `NotReadyError`.

        Raises:
            UnknownPolicyError: no policy has that name.
        """
        if name not in self.policies:
            raise UnknownPolicyError(f"no policy is named {name[:64]!r}; loaded: {listed(sorted(self.policies))}")
        removed = self.policies.pop(name)
        self._tell(name, None)
        await removed.close()

    def _tell(self, name: str, policy: ServedPolicy | None) -> None:
        for watcher in self.watchers:
            watcher(name, policy)

    def stop_accepting(self) -> None:
        """From now on every new request is refused; what has begun is finished."""
        self.accepting = False

    async def close(self) -> None:
        """Ends the policies, after what they have begun."""
        await asyncio.gather(*(policy.close() for policy in self.policies.values()))
