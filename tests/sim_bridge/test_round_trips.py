import numpy as np

from sim_bridge.round_trips import RoundTrips


def test_percentiles_agree_with_sorting_within_the_resolution():
    times = np.random.default_rng(0).lognormal(12.0, 1.0, 5000).astype(int)
    trips = RoundTrips()
    for time in times:
        trips.add(int(time))
    for percent in (1, 50, 99, 100):
        expected = np.percentile(times, percent, method="inverted_cdf")
        np.testing.assert_allclose(trips.percentile_ns(percent), expected, rtol=0.01)
    assert trips.max_ns == times.max()


def test_no_measurement_has_no_percentile():
    assert RoundTrips().percentile_ns(50) is None
