"""What the server counts and times, and how Prometheus reads it.

The numbers are kept as plain integers and given to prometheus_client when somebody asks: counting a decision takes 1.3 µs
instead of the 7 µs of that library's locked metrics, and it is counted on the control path. Call it from one thread.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Literal, get_args

from prometheus_client import Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from protos.codec import Summary
from server.manifest import Manifest
from server.served_policy import Signals
from server.tracing import Tracing

Method = Literal["control", "act", "assess", "http", "infer"]
Status = Literal["ok", "superseded", "expired", "rejected", "failed", "overloaded"]
Signal = Literal["critic_disagreement", "data_distance", "return_cvar"]
LATENCY_BUCKETS_S = (2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
RATIO_BUCKETS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
SHARE_BUCKETS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 1.0)


class Distribution:
    """A histogram: how many values fell up to each bound, and their sum."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        """Writes it as one labelled series."""
        bounds = [*map(floatToGoString, self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(self._counts), strict=True)), self._sum)


class _Method:
    """Calls of one method: how they ended, and their times by stage."""

    __slots__ = ("encode", "inference", "queue", "statuses", "total")

    def __init__(self) -> None:
        # A labelled series exists from the first call on, so that a rate over it begins at zero.
        self.statuses: dict[Status, int] = dict.fromkeys(get_args(Status), 0)
        self.queue = Distribution(LATENCY_BUCKETS_S)
        self.inference = Distribution(LATENCY_BUCKETS_S)
        self.encode: Distribution | None = None
        self.total = Distribution(LATENCY_BUCKETS_S)


class _Policy:
    """Numbers of one policy. They outlive an unload, since a counter that starts again reads as a restart."""

    def __init__(self) -> None:
        self.loaded = True
        self.critic_disagreement_threshold: float | None = None
        self.data_distance_threshold: float | None = None
        self.return_threshold = 0.0
        self.control_period_ns = 0.0
        self.methods: dict[Method, _Method] = {}
        self.sheds: dict[str, int] = {}
        self.batch = Distribution(BATCH_BUCKETS)
        self.rehearsals = 0
        self.queue_depth = 0
        self.sessions = 0
        self.late_ticks = 0
        self.promises = {"granted": 0, "refused": 0}
        self.critic_disagreement = Distribution(RATIO_BUCKETS)
        self.data_distance = Distribution(RATIO_BUCKETS)
        self.below_threshold = Distribution(SHARE_BUCKETS)
        self.cvar_below = 0

    def describe(self, manifest: Manifest) -> None:
        """Takes over the thresholds of the version that is served from now on."""
        self.loaded = True
        self.control_period_ns = 1e9 * manifest.control_period_s
        calibration = manifest.calibration
        # A signal that never varied in calibration has threshold 0, to which nothing has a ratio.
        self.critic_disagreement_threshold = (calibration and calibration.critic_disagreement_threshold) or None
        self.data_distance_threshold = (calibration and calibration.data_distance_threshold) or None
        self.return_threshold = manifest.uncertainty.return_threshold


class Telemetry:
    """What the server counts and times, by policy. Times are given in nanoseconds and shown in seconds."""

    def __init__(self, manifests: Iterable[Manifest] = (), *, tracing: Tracing | None = None) -> None:
        self._policies: dict[str, _Policy] = {}
        self._tracing = tracing
        self.granted_load: Callable[[str], float] = lambda _policy: 0.0
        """Says which share of a core is promised to the sessions of a policy."""
        for manifest in manifests:
            self.add_policy(manifest)

    def add_policy(self, manifest: Manifest) -> None:
        """Shows a policy that was loaded; what an earlier version of that name has counted goes on."""
        self._policies.setdefault(manifest.name, _Policy()).describe(manifest)

    def remove_policy(self, policy: str) -> None:
        """Shows a policy no more; calls that still end are counted."""
        self._policies[policy].loaded = False

    def decided(
        self,
        policy: str,
        method: Method,
        *,
        queue_ns: int,
        inference_ns: int,
        total_ns: int,
        encode_ns: int | None = None,
        rows: int = 1,
    ) -> None:
        """Counts one served call of so many observations, and its times; in the task that answers it, for its trace."""
        numbers = self._method(policy, method)
        numbers.statuses["ok"] += rows
        numbers.queue.observe(queue_ns / 1e9)
        numbers.inference.observe(inference_ns / 1e9)
        numbers.total.observe(total_ns / 1e9)
        if encode_ns is not None:
            if numbers.encode is None:
                numbers.encode = Distribution(LATENCY_BUCKETS_S)
            numbers.encode.observe(encode_ns / 1e9)
        if self._tracing is not None:
            slow = total_ns > self._policies[policy].control_period_ns
            self._tracing.decided(policy, queue_ns=queue_ns, inference_ns=inference_ns, total_ns=total_ns, slow=slow)

    def _method(self, policy: str, method: Method) -> _Method:
        methods = self._policies[policy].methods
        numbers = methods.get(method)
        if numbers is None:
            numbers = methods[method] = _Method()
        return numbers

    def refused(self, policy: str, method: Method, status: Status) -> None:
        """Counts one observation that got no decision."""
        self._method(policy, method).statuses[status] += 1

    def uncertainty(self, policy: str, summary: Summary | Signals) -> None:
        """Counts what one decision stated of its own uncertainty."""
        numbers = self._policies[policy]
        if numbers.critic_disagreement_threshold is not None:
            numbers.critic_disagreement.observe(summary.critic_disagreement / numbers.critic_disagreement_threshold)
        if numbers.data_distance_threshold is not None:
            numbers.data_distance.observe(summary.data_distance / numbers.data_distance_threshold)
        numbers.below_threshold.observe(summary.return_below_threshold)
        numbers.cvar_below += summary.return_cvar < numbers.return_threshold

    def batch(self, policy: str, rows: int) -> None:
        """Counts one run of ONNX Runtime over so many observations."""
        self._policies[policy].batch.observe(rows)

    def rehearsed(self, policy: str) -> None:
        """Counts one decision computed for nobody."""
        self._policies[policy].rehearsals += 1

    def queue_depth(self, policy: str, waiting: int) -> None:
        """Sets how many observations wait."""
        self._policies[policy].queue_depth = waiting

    def shed(self, policy: str, reason: str) -> None:
        """Counts one observation refused for overload. `reason` is one of a few fixed words, never a client's text."""
        sheds = self._policies[policy].sheds
        sheds[reason] = sheds.get(reason, 0) + 1

    def promised(self, policy: str, *, granted: bool) -> None:
        """Counts one session that asked for a rate and a latency."""
        self._policies[policy].promises["granted" if granted else "refused"] += 1

    def session_opened(self, policy: str) -> None:
        """Counts a control session in."""
        self._policies[policy].sessions += 1

    def session_closed(self, policy: str) -> None:
        """Counts a control session out."""
        self._policies[policy].sessions -= 1

    def late_ticks(self, policy: str, count: int) -> None:
        """Adds late ticks that a robot reported."""
        self._policies[policy].late_ticks += count

    def collect(self) -> Iterator[Metric]:
        """All metrics of the loaded policies; the protocol of prometheus_client's collectors."""
        shown = {name: numbers for name, numbers in self._policies.items() if numbers.loaded}
        yield from (_stages(shown), _decisions(shown), _sheds(shown), _promises(shown))
        for gauge, text, value in _GAUGES:
            family = GaugeMetricFamily(gauge, text, labels=("policy",))
            for name, numbers in shown.items():
                family.add_metric([name], getattr(numbers, value))
            yield family
        yield self._granted_load(shown)
        for counter, text, value in _COUNTERS:
            counted = CounterMetricFamily(counter, text, labels=("policy",))
            for name, numbers in shown.items():
                counted.add_metric([name], getattr(numbers, value))
            yield counted
        for histogram, text, value, threshold in _HISTOGRAMS:
            distributed = HistogramMetricFamily(histogram, text, labels=("policy",))
            for name, numbers in shown.items():
                if not threshold or getattr(numbers, threshold) is not None:
                    getattr(numbers, value).add_to(distributed, [name])
            yield distributed

    def _granted_load(self, shown: Iterable[str]) -> Metric:
        family = GaugeMetricFamily(
            "dst_granted_load", "Share of a core promised to sessions, summed over workers.", labels=("policy",)
        )
        for name in shown:
            family.add_metric([name], self.granted_load(name))
        return family

    def exposition(self) -> bytes:
        """The metrics of this process in Prometheus' text format."""
        return generate_latest(self)

    async def scraped(self) -> bytes:
        """The metrics of the whole server."""
        return self.exposition()


_GAUGES = (
    ("dst_queue_depth", "Observations that wait to be computed.", "queue_depth"),
    ("dst_control_sessions", "Open control sessions.", "sessions"),
)
_COUNTERS = (
    ("dst_rehearsals", "Decisions computed for nobody shortly before a robot is expected to ask.", "rehearsals"),
    ("dst_robot_late_ticks", "Ticks that robots reported late.", "late_ticks"),
    ("dst_cvar_below_threshold", "Decisions whose return_cvar lay under the return threshold.", "cvar_below"),
)
_HISTOGRAMS = (
    ("dst_batch_rows", "Observations computed in one run of ONNX Runtime.", "batch", ""),
    (
        "dst_critic_disagreement_ratio",
        "critic_disagreement of served decisions over its calibrated threshold; above 1 it warns.",
        "critic_disagreement",
        "critic_disagreement_threshold",
    ),
    (
        "dst_data_distance_ratio",
        "data_distance of served decisions over its calibrated threshold; above 1 it warns.",
        "data_distance",
        "data_distance_threshold",
    ),
    (
        "dst_return_below_threshold_ratio",
        "return_below_threshold of served decisions: the stated probability of a return under the threshold.",
        "below_threshold",
        "",
    ),
)


def _stages(shown: dict[str, _Policy]) -> Metric:
    family = HistogramMetricFamily(
        "dst_stage_latency_seconds",
        "Time of a call by stage: queue, inference, encode where measured, and total from receipt to reply.",
        labels=("policy", "method", "stage"),
    )
    for name, numbers in shown.items():
        for method, calls in numbers.methods.items():
            for stage in ("queue", "inference", "encode", "total"):
                times: Distribution | None = getattr(calls, stage)
                if times is not None:
                    times.add_to(family, [name, method, stage])
    return family


def _decisions(shown: dict[str, _Policy]) -> Metric:
    family = CounterMetricFamily(
        "dst_decisions", "Observations answered, by status.", labels=("policy", "method", "status")
    )
    for name, numbers in shown.items():
        for method, calls in numbers.methods.items():
            for status, count in calls.statuses.items():
                family.add_metric([name, method, status], count)
    return family


def _sheds(shown: dict[str, _Policy]) -> Metric:
    family = CounterMetricFamily("dst_sheds", "Observations refused for overload.", labels=("policy", "reason"))
    for name, numbers in shown.items():
        for reason, count in numbers.sheds.items():
            family.add_metric([name, reason], count)
    return family


def _promises(shown: dict[str, _Policy]) -> Metric:
    family = CounterMetricFamily(
        "dst_promises", "Sessions that asked for a rate and a latency.", labels=("policy", "outcome")
    )
    for name, numbers in shown.items():
        for outcome, count in numbers.promises.items():
            family.add_metric([name, outcome], count)
    return family
