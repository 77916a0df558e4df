import math

import pytest

from server.admission import LEAST_DECISIONS, SHARE_LIMIT, WIRE_S, Admission, RateMeter
from server.errors import InvalidInputError, OverloadedError

MS = 0.001


def admission():
    return Admission(processor_s=lambda: 0.0)


def grant(to, **wanted):
    asked = {"rate_hz": 100.0, "latency_ms": 5.0, "cost_s": 0.1 * MS, "longest_s": MS, "policy": "reacher"}
    return to.grant(**{**asked, **wanted})


def test_promises_never_need_more_than_the_share_of_the_processor():
    rates = admission()
    most = math.floor(SHARE_LIMIT / (100 * (0.11 * MS + WIRE_S)))
    granted = [grant(rates, latency_ms=100.0, cost_s=0.11 * MS) for _ in range(most)]
    assert rates.share <= SHARE_LIMIT
    with pytest.raises(OverloadedError, match="100 Hz cannot be promised"):
        grant(rates, latency_ms=100.0)
    rates.release(granted.pop())
    grant(rates, latency_ms=100.0)


def test_the_rate_that_a_refusal_names_is_granted():
    rates = admission()
    with pytest.raises(OverloadedError) as refusal:
        grant(rates, rate_hz=5000.0, latency_ms=50.0)
    possible = float(str(refusal.value).partition("at most ")[2].split()[0])
    with pytest.raises(OverloadedError):
        grant(rates, rate_hz=1.01 * possible, latency_ms=50.0)
    grant(rates, rate_hz=0.99 * possible, latency_ms=50.0)


def test_a_latency_is_promised_only_where_all_promised_sessions_fit_into_it_at_once():
    """A session takes 0.5 ms, the longest other work 1 ms: eight of them fit into 5 ms."""
    rates = admission()
    for _ in range(8):
        grant(rates, rate_hz=1.0)
    with pytest.raises(OverloadedError, match=r"an answer may take 5\.50 ms"):
        grant(rates, rate_hz=1.0)


def test_a_new_promise_does_not_break_an_old_one():
    rates = admission()
    grant(rates, rate_hz=1.0, latency_ms=2.0)
    with pytest.raises(OverloadedError, match="2 ms are or would be promised"):
        grant(rates, rate_hz=1.0, latency_ms=100.0, cost_s=0.5 * MS)


def test_without_a_latency_the_period_is_promised():
    assert grant(admission(), rate_hz=50.0, latency_ms=0.0).latency_ms == 20.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("rate_hz", value) for value in (math.nan, -1.0, math.inf, 1e9, 0.0)),
        *(("latency_ms", value) for value in (math.nan, -1.0, math.inf)),
    ],
)
def test_impossible_promises_name_the_field(field, value):
    with pytest.raises(InvalidInputError, match=f"{field} must lie in"):
        grant(admission(), **{field: value})


def test_what_the_wire_costs_is_measured_beside_the_inference():
    used = [0.0]
    rates = Admission(processor_s=lambda: used[0])
    for _ in range(LEAST_DECISIONS):
        rates.decided(100_000)
        used[0] += 0.3 * MS
    assert rates.wire_s == pytest.approx(0.2 * MS)
    rates.decided(100_000)
    used[0] += 10.0  # too few decisions to say anything
    assert rates.wire_s == pytest.approx(0.2 * MS)


def test_observations_within_the_promised_rate_count_as_promised_and_more_do_not():
    second = 1_000_000_000
    meter = RateMeter(100.0)
    assert all(meter.within(tick * second // 100) for tick in range(1000))
    meter = RateMeter(100.0)
    kept = sum(meter.within(tick * second // 200) for tick in range(1000))
    assert kept == pytest.approx(505, abs=5)
