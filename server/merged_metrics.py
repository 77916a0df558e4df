"""Metrics of several processes as those of one server: every series is the sum over the processes."""

from collections.abc import Container, Iterable

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, tuple[tuple[str, str], ...]]
"""Name of a sample and its labels."""


class MergedMetrics:
    """Adds up expositions. What a process that ended had counted stays in the sums, so that no counter falls."""

    def __init__(self) -> None:
        self._ended: list[Metric] = []

    def end(self, exposition: bytes) -> None:
        """Keeps the counters and histograms of a process that is gone; its gauges went with it."""
        families = _families(exposition)
        self._ended = _sum([*self._ended, *(family for family in families if family.type != "gauge")])

    def exposition(self, running: Iterable[bytes]) -> bytes:
        """The sums in Prometheus' text format, over what is running and, of the policies loaded there, what has ended."""
        families = [family for text in running for family in _families(text)]
        policies = {sample.labels.get("policy") for family in families for sample in family.samples}
        ended = [_of_policies(family, policies) for family in self._ended]
        return generate_latest(_Collected(_sum([*families, *ended])))


class _Collected:
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def _of_policies(family: Metric, policies: Container[str | None]) -> Metric:
    shown = Metric(family.name, family.documentation, family.type)
    shown.samples = [sample for sample in family.samples if sample.labels.get("policy") in policies]
    return shown


def _families(exposition: bytes) -> list[Metric]:
    return list(text_string_to_metric_families(exposition.decode()))


def _sum(families: Iterable[Metric]) -> list[Metric]:
    sums: dict[str, tuple[Metric, dict[Series, float]]] = {}
    for family in families:
        _, values = sums.setdefault(family.name, (family, {}))
        for sample in family.samples:
            series = (sample.name, tuple(sample.labels.items()))
            values[series] = values.get(series, 0.0) + sample.value
    merged = []
    for family, values in sums.values():
        summed = Metric(family.name, family.documentation, family.type)
        for (name, labels), value in values.items():
            summed.add_sample(name, dict(labels), value)
        merged.append(summed)
    return merged
