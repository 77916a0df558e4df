"""Promises of rate and latency: granted from what decisions have cost this process, or refused.

A promise can be kept where all promises together need less than a share of the processor, and where the worst case is answered in
time: all promised observations at once, behind the longest computation that was never promised (response-time analysis without
preemption; George, Rivierre and Spuri, "Preemptive and non-preemptive real-time uniprocessor scheduling", 1996).
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from server.errors import InvalidInputError, OverloadedError

SHARE_LIMIT = 0.7
"""Of one core, for all promises together: what was promised stays in time when others ask too."""
WIRE_S = 0.0004
"""Receiving, telemetry and sending of one decision until it has been measured: what it takes on two cores of an AMD EPYC."""
WIRE_RANGE_S = (0.00005, 0.005)
LEAST_DECISIONS = 200
"""Decisions between two measurements of the wire."""
RATE_RANGE_HZ = (0.01, 10_000.0)
LATENCY_RANGE_MS = (0.01, 60_000.0)
RETRY_AFTER_MS = 5000


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What a session may rely on."""

    rate_hz: float
    latency_ms: float
    cost_s: float
    """Inference of one of its decisions."""
    policy: str
    """Which decides for it."""


class Admission:
    """The promises of one process.

    Args:
        processor_s: seconds of processor time that the process has used.
    """

    def __init__(self, *, processor_s: Callable[[], float] = time.process_time) -> None:
        self._processor_s = processor_s
        self._promises: list[Promise] = []
        self._wire_s = WIRE_S
        self._decisions = 0
        self._inference_s = 0.0
        self._measured_from = processor_s()

    def decided(self, inference_ns: int) -> None:
        """Counts one decision and its own part of the inference, for what the wire costs."""
        self._decisions += 1
        self._inference_s += inference_ns / 1e9

    def rehearsed(self, took_ns: int) -> None:
        """Leaves out of that what was computed for nobody: it is done only while nothing else is to do."""
        self._inference_s += took_ns / 1e9

    @property
    def wire_s(self) -> float:
        """Processor seconds of one decision beside its inference, as last measured."""
        if self._decisions >= LEAST_DECISIONS:
            now_s = self._processor_s()
            beside = (now_s - self._measured_from - self._inference_s) / self._decisions
            self._wire_s = min(max(beside, WIRE_RANGE_S[0]), WIRE_RANGE_S[1])
            self._measured_from, self._decisions, self._inference_s = now_s, 0, 0.0
        return self._wire_s

    @property
    def share(self) -> float:
        """Share of one core that all promises need."""
        wire_s = self.wire_s
        return sum(promise.rate_hz * (promise.cost_s + wire_s) for promise in self._promises)

    def share_of(self, policy: str) -> float:
        """The part of one policy in that share, at what the wire cost when it was last measured: looking changes nothing."""
        own = (promise for promise in self._promises if promise.policy == policy)
        return sum(promise.rate_hz * (promise.cost_s + self._wire_s) for promise in own)

    def grant(self, *, rate_hz: float, latency_ms: float, cost_s: float, longest_s: float, policy: str) -> Promise:
        """Promises a rate and a latency.

        Args:
            rate_hz: observations per second.
            latency_ms: from receipt to reply, for 99 of 100; 0 means the period of that rate, at most a minute.
            cost_s: inference of one decision.
            longest_s: the longest that the processor may be taken up by something that was not promised.
            policy: which decides, for `share_of`.

        Raises:
            InvalidInputError: the rate or the latency is impossible.
            OverloadedError: it cannot be kept beside the promises there are.
        """
        _check("rate_hz", rate_hz, RATE_RANGE_HZ)
        latency_ms = latency_ms or min(1000 / rate_hz, LATENCY_RANGE_MS[1])
        _check("latency_ms", latency_ms, LATENCY_RANGE_MS)
        wire_s, taken = self.wire_s, self.share
        decision_s = cost_s + wire_s
        if taken + rate_hz * decision_s > SHARE_LIMIT:
            possible = max(0.0, (SHARE_LIMIT - taken) / decision_s)
            raise OverloadedError(
                f"{rate_hz:g} Hz cannot be promised: a decision costs {1e3 * decision_s:.2f} ms and "
                f"{taken:.0%} of {SHARE_LIMIT:.0%} of a core are promised; ask for at most {possible:.3g} Hz, or retry later",
                retry_after_ms=RETRY_AFTER_MS,
            )
        worst_s = longest_s + decision_s + sum(promise.cost_s + wire_s for promise in self._promises)
        tightest = min([latency_ms, *(promise.latency_ms for promise in self._promises)])
        if 1e3 * worst_s > tightest:
            raise OverloadedError(
                f"{latency_ms:g} ms cannot be promised: with {len(self._promises)} promised sessions an answer may take "
                f"{1e3 * worst_s:.2f} ms, and {tightest:g} ms are or would be promised; ask for more time, or retry later",
                retry_after_ms=RETRY_AFTER_MS,
            )
        promise = Promise(rate_hz=rate_hz, latency_ms=latency_ms, cost_s=cost_s, policy=policy)
        self._promises.append(promise)
        return promise

    def release(self, promise: Promise) -> None:
        """Takes a promise back when its session ends."""
        self._promises = [other for other in self._promises if other is not promise]


class RateMeter:
    """Whether observations stay within a promised rate, with room for two that come together (a token bucket)."""

    BURST = 2.0

    def __init__(self, rate_hz: float) -> None:
        self._rate_hz = rate_hz
        self._tokens = self.BURST
        self._last_ns: int | None = None

    def within(self, now_ns: int) -> bool:
        """Whether the observation that came now does."""
        elapsed_s = 0.0 if self._last_ns is None else (now_ns - self._last_ns) / 1e9
        self._last_ns = now_ns
        # A hundredth more, lest two clocks that differ slightly use up what was promised.
        self._tokens = min(self.BURST, self._tokens + 1.01 * self._rate_hz * elapsed_s)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _check(field: str, value: float, bounds: tuple[float, float]) -> None:
    low, high = bounds
    if not (math.isfinite(value) and low <= value <= high):
        raise InvalidInputError(f"{field} must lie in {low:g}..{high:g}, got {value:g}; leave it out for no promise")
