"""The transport-neutral core: what every wire asks, checked and answered in one place."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from protos.codec import Channel, FloatArray, Samples, Summary, VectorError, checked_vector, contract_fingerprint
from server.errors import (
    BundleError,
    ContractMismatchError,
    ExpiredError,
    InferenceError,
    InvalidInputError,
    OverloadedError,
    ShuttingDownError,
    UnknownPolicyError,
)
from server.manifest import ChannelLimits, limit
from server.runtime import Detail, Runtime

logger = logging.getLogger(__name__)

Clock = Callable[[], int]
INLINE_BELOW_S = 0.001
"""A policy that decides within this time runs on the event loop itself: handing it to a thread costs more than that,
and health checks wait no longer than this. Slower policies run in a thread of their own."""
QUEUE_LIMIT = 64
"""Observations that may wait for one policy's thread; more are refused."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The answer to one observation."""

    action: FloatArray
    """(A,), in the units and limits of the contract."""
    summary: Summary | None
    """Summary of the joint law of return and action gradient, unless `Detail.NONE` was asked."""
    samples: Samples | None
    """Raw samples, where `Detail.SAMPLES` was asked."""
    queue_ns: int
    """From receipt to the start of inference."""
    inference_ns: int
    """Inference and the checks of its outputs."""


class ServedPolicy:
    """One loaded policy: its contract, and the lane in which its observations are computed."""

    def __init__(
        self, runtime: Runtime, *, inline_below_s: float = INLINE_BELOW_S, clock: Clock = time.monotonic_ns
    ) -> None:
        manifest = runtime.manifest
        self.manifest = manifest
        self.runtime = runtime
        self.observation = _channels(manifest.observation)
        self.action = _channels(manifest.action)
        self.fingerprint = contract_fingerprint(self.observation, self.action, manifest.control_period_s)
        self._observation_names = manifest.observation_names
        self._clock = clock
        self._waiting = 0
        self._thread: ThreadPoolExecutor | None = None
        if runtime.inference_s >= inline_below_s:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"infer-{manifest.name}")

    @property
    def inline(self) -> bool:
        """Whether it is computed on the event loop."""
        return self._thread is None

    def check_contract(self, fingerprint: str) -> None:
        """Compares a client's contract fingerprint with the policy's; an empty one is not compared.

        Raises:
            ContractMismatchError: they differ.
        """
        if fingerprint and fingerprint != self.fingerprint:
            raise ContractMismatchError(
                f"contract must be {self.fingerprint} for policy {self.manifest.name!r}, got {fingerprint[:64]!r}; "
                "compare names, units, limits, order and control period with what Describe states"
            )

    def checked_observation(self, values: ArrayLike) -> FloatArray:
        """The observation as float32, shape (S,).

        Raises:
            InvalidInputError: wrong size, or a number that is not finite; names the channel and its index.
        """
        try:
            return checked_vector(values, self._observation_names)
        except VectorError as error:
            raise InvalidInputError(str(error)) from error

    def ordered_observation(self, values: Mapping[str, float]) -> list[float]:
        """The observation in contract order from numbers by channel name, shape (S,).

        Raises:
            InvalidInputError: a channel is missing or unknown.
        """
        missing = [name for name in self._observation_names if name not in values]
        if missing:
            raise InvalidInputError(f"observation must name every channel, missing {_listed(missing)}")
        if len(values) > len(self._observation_names):
            unknown = [name for name in values if name not in self._observation_names]
            raise InvalidInputError(
                f"observation names unknown channels {_listed(unknown)}; the policy expects "
                f"{_listed(self._observation_names)}"
            )
        return [values[name] for name in self._observation_names]

    async def decide(
        self, observation: FloatArray, detail: Detail, *, received_ns: int, deadline_ns: int | None = None
    ) -> Decision:
        """Computes one decision.

        Args:
            observation: from `checked_observation`, shape (S,).
            detail: how much uncertainty to compute.
            received_ns: when it arrived, on the core's clock.
            deadline_ns: on the same clock; after it nothing is computed.

        Raises:
            ExpiredError: the deadline passed while it waited.
            OverloadedError: too much is waiting for this policy.
            InferenceError: the policy gave no usable output.
        """
        if self._thread is None:
            return self._compute(observation, detail, received_ns, deadline_ns)
        if self._waiting >= QUEUE_LIMIT:
            raise OverloadedError(
                f"policy {self.manifest.name!r} has {self._waiting} observations waiting, its limit; retry later",
                retry_after_ms=max(1, math.ceil(1000 * self._waiting * self.runtime.inference_s)),
            )
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(
                self._thread, self._compute, observation, detail, received_ns, deadline_ns
            )
        finally:
            self._waiting -= 1

    def _compute(self, observation: FloatArray, detail: Detail, received_ns: int, deadline_ns: int | None) -> Decision:
        started = self._clock()
        if deadline_ns is not None and started >= deadline_ns:
            late_ms = (started - deadline_ns) / 1e6
            raise ExpiredError(
                f"the observation expired {late_ms:.1f} ms before it could be computed; send a newer one"
            )
        try:
            outputs = self.runtime.infer(observation[np.newaxis], detail)
        except InferenceError as error:
            name, version = self.manifest.name, self.manifest.version
            logger.error("policy %s version %s: %s", name, version, error, exc_info=error.__cause__)  # noqa: TRY400
            raise
        finished = self._clock()
        values = {name: output[0] for name, output in zip(self.runtime.outputs[detail], outputs, strict=True)}
        return Decision(
            action=values["action"],
            summary=None if detail is Detail.NONE else _summary(values),
            samples=_samples(values) if detail is Detail.SAMPLES else None,
            queue_ns=started - received_ns,
            inference_ns=finished - started,
        )

    def close(self) -> None:
        """Waits for the observation being computed and ends the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)


class Core:
    """The loaded policies, by name."""

    def __init__(self, policies: Sequence[ServedPolicy], *, clock: Clock = time.monotonic_ns) -> None:
        """Raises BundleError where two policies have one name."""
        self.clock = clock
        self.policies: dict[str, ServedPolicy] = {}
        self.accepting = True
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
            UnknownPolicyError: no policy has that name.
        """
        if not self.accepting:
            raise ShuttingDownError("server is shutting down")
        loaded = _listed(sorted(self.policies))
        if not name:
            if len(self.policies) == 1:
                return next(iter(self.policies.values()))
            raise InvalidInputError(f"policy must be named where several are loaded: {loaded}")
        if name not in self.policies:
            raise UnknownPolicyError(f"no policy is named {name[:64]!r}; loaded: {loaded}")
        return self.policies[name]

    def stop_accepting(self) -> None:
        """From now on every new request is refused; what has begun is finished."""
        self.accepting = False

    def close(self) -> None:
        """Ends the policies' threads."""
        for policy in self.policies.values():
            policy.close()


def _channels(channels: Sequence[ChannelLimits]) -> tuple[Channel, ...]:
    return tuple(
        Channel(name=c.name, unit=c.unit, low=limit(c.low, -math.inf), high=limit(c.high, math.inf)) for c in channels
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name[:64]) for name in names[:16])
    return shown if len(names) <= 16 else f"{shown} and {len(names) - 16} more"


def _summary(values: Mapping[str, FloatArray]) -> Summary:
    return Summary(
        return_mean=float(values["return_mean"]),
        return_std=float(values["return_std"]),
        return_quantiles_raw=values["return_quantiles_raw"],
        return_quantiles_corrected=values.get("return_quantiles_corrected"),
        return_cvar=float(values["return_cvar"]),
        return_below_threshold=float(values["return_below_threshold"]),
        gradient_mean=values["gradient_mean"],
        gradient_std=values["gradient_std"],
        gradient_norm_quantiles=values["gradient_norm_quantiles"],
        gradient_sign_agreement=values["gradient_sign_agreement"],
        gradient_resultant_length=float(values["gradient_resultant_length"]),
        critic_disagreement=float(values["critic_disagreement"]),
        data_distance=float(values["data_distance"]),
        observation_gradient_mean=values.get("observation_gradient_mean"),
    )


def _samples(values: Mapping[str, FloatArray]) -> Samples:
    return Samples(returns=values["return_samples"], action_gradients=values["gradient_samples"])
