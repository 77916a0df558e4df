"""Prometheus metrics of the server, in a registry of their own."""

from collections.abc import Callable, Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

Wire = Literal["control", "act", "http"]
Status = Literal["ok", "superseded", "expired", "rejected", "failed", "overloaded"]
LATENCY_BUCKETS_S = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)


class Telemetry:
    """What the server counts and times. All times in seconds."""

    def __init__(self, policies: Sequence[str]) -> None:
        self.registry = CollectorRegistry()
        self._stages = Histogram(
            "dst_stage_latency_seconds",
            "Time of a decision by stage: waiting, inference, and in all from receipt to reply.",
            ("policy", "stage"),
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._decisions = Counter(
            "dst_decisions",
            "Observations answered, by status.",
            ("policy", "wire", "status"),
            registry=self.registry,
        )
        self._sessions = Gauge("dst_control_sessions", "Open control sessions.", ("policy",), registry=self.registry)
        self._late_ticks = Counter(
            "dst_robot_late_ticks", "Ticks that robots reported late.", ("policy",), registry=self.registry
        )
        # A labelled series exists from the start, so that a rate over it begins at zero.
        self._observe: dict[str, tuple[Callable[[float], None], ...]] = {
            policy: tuple(self._stages.labels(policy, stage).observe for stage in ("queue", "inference", "total"))
            for policy in policies
        }
        for policy in policies:
            self._sessions.labels(policy)
            self._late_ticks.labels(policy)

    def decided(self, policy: str, wire: Wire, *, queue_ns: int, inference_ns: int, total_ns: int) -> None:
        """Counts one served decision and its times."""
        self._decisions.labels(policy, wire, "ok").inc()
        queue, inference, total = self._observe[policy]
        queue(queue_ns / 1e9)
        inference(inference_ns / 1e9)
        total(total_ns / 1e9)

    def refused(self, policy: str, wire: Wire, status: Status) -> None:
        """Counts one observation that got no decision."""
        self._decisions.labels(policy, wire, status).inc()

    def session_opened(self, policy: str) -> None:
        """Counts a control session in."""
        self._sessions.labels(policy).inc()

    def session_closed(self, policy: str) -> None:
        """Counts a control session out."""
        self._sessions.labels(policy).dec()

    def late_ticks(self, policy: str, count: int) -> None:
        """Adds late ticks that a robot reported."""
        self._late_ticks.labels(policy).inc(count)

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)
