"""Percentiles of the round trip over a run of any length, in bounded memory."""

import math
from collections import Counter

RESOLUTION = 0.01
_LOG_STEP = math.log1p(RESOLUTION)


class RoundTrips:
    """A histogram with buckets 1 % wide; the maximum is exact."""

    def __init__(self) -> None:
        self.count = 0
        self.max_ns = 0
        self._buckets: Counter[int] = Counter()

    def add(self, round_trip_ns: int) -> None:
        """Add one measurement."""
        self.count += 1
        self.max_ns = max(self.max_ns, round_trip_ns)
        self._buckets[math.floor(math.log(max(round_trip_ns, 1)) / _LOG_STEP)] += 1

    def percentile_ns(self, percent: float) -> float | None:
        """The value that `percent` of the measurements do not exceed, within 1 %; None without measurements."""
        rank = math.ceil(self.count * percent / 100.0)
        seen = 0
        for bucket, count in sorted(self._buckets.items()):
            seen += count
            if seen >= max(rank, 1):
                return min(math.exp((bucket + 0.5) * _LOG_STEP), float(self.max_ns))
        return None
