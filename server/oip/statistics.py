"""Counts and cumulated times per loaded model, as Triton's statistics extension has them."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from weakref import WeakKeyDictionary

from pydantic import TypeAdapter

from server.oip.messages import InferStatistics, ModelStatistics, StatisticDuration
from server.served_policy import ServedPolicy

_JSON = TypeAdapter(list[ModelStatistics])


def statistics_to_json(statistics: Iterable[ModelStatistics]) -> str:
    """One line, for another process of the server."""
    return _JSON.dump_json(list(statistics)).decode()


def statistics_from_json(line: str) -> list[ModelStatistics]:
    """What `statistics_to_json` wrote."""
    return _JSON.validate_json(line)


def summed(statistics: Iterable[ModelStatistics]) -> dict[tuple[str, str], ModelStatistics]:
    """Of several processes, by name and version of the model."""
    sums: dict[tuple[str, str], ModelStatistics] = {}
    for one in statistics:
        other = sums.get((one.name, one.version))
        sums[one.name, one.version] = one if other is None else _sum(one, other)
    return sums


def _sum(one: ModelStatistics, other: ModelStatistics) -> ModelStatistics:
    return replace(
        one,
        last_inference=max(one.last_inference, other.last_inference),
        inference_count=one.inference_count + other.inference_count,
        execution_count=one.execution_count + other.execution_count,
        inference_stats=InferStatistics(
            **{
                stage.name: _added(getattr(one.inference_stats, stage.name), getattr(other.inference_stats, stage.name))
                for stage in fields(InferStatistics)
            }
        ),
    )


def _added(one: StatisticDuration, other: StatisticDuration) -> StatisticDuration:
    return StatisticDuration(count=one.count + other.count, ns=one.ns + other.ns)


@dataclass(kw_only=True)
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns

    @property
    def so_far(self) -> StatisticDuration:
        return StatisticDuration(count=self.count, ns=self.ns)


@dataclass(kw_only=True)
class _Counted:
    rows: int = 0
    last_inference_ms: int = 0
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    compute_input: _Duration = field(default_factory=_Duration)
    compute_infer: _Duration = field(default_factory=_Duration)
    compute_output: _Duration = field(default_factory=_Duration)


class Statistics:
    """Of every policy that this protocol was asked about; what is loaded again begins at zero."""

    def __init__(self) -> None:
        self._counted: WeakKeyDictionary[ServedPolicy, _Counted] = WeakKeyDictionary()

    def _of(self, policy: ServedPolicy) -> _Counted:
        return self._counted.setdefault(policy, _Counted())

    def succeeded(
        self,
        policy: ServedPolicy,
        *,
        rows: int,
        total_ns: int,
        input_ns: int,
        queue_ns: int,
        infer_ns: int,
        output_ns: int,
    ) -> None:
        """Counts one answered request and the stages of its time."""
        counted = self._of(policy)
        counted.rows += rows
        counted.last_inference_ms = time.time_ns() // 1_000_000
        counted.success.add(total_ns)
        counted.compute_input.add(input_ns)
        counted.queue.add(queue_ns)
        counted.compute_infer.add(infer_ns)
        counted.compute_output.add(output_ns)

    def failed(self, policy: ServedPolicy, *, total_ns: int) -> None:
        """Counts one request that got no answer."""
        self._of(policy).fail.add(total_ns)

    def of(self, policy: ServedPolicy) -> ModelStatistics:
        """What was counted so far."""
        counted = self._of(policy)
        return ModelStatistics(
            name=policy.manifest.name,
            version=policy.manifest.version,
            last_inference=counted.last_inference_ms,
            inference_count=counted.rows,
            execution_count=counted.success.count,
            inference_stats=InferStatistics(
                success=counted.success.so_far,
                fail=counted.fail.so_far,
                queue=counted.queue.so_far,
                compute_input=counted.compute_input.so_far,
                compute_infer=counted.compute_infer.so_far,
                compute_output=counted.compute_output.so_far,
            ),
        )
