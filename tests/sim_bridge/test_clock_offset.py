from sim_bridge.clock_offset import ClockOffsetEstimator


def exchange(estimator, *, at, offset, out, back, server=500):
    received = at + out + offset
    estimator.add(sent_ns=at, received_ns=received, replied_ns=received + server, returned_ns=at + out + server + back)


def test_symmetric_exchange_gives_the_offset_whatever_the_server_takes():
    for server in (0, 10**9):
        estimator = ClockOffsetEstimator()
        exchange(estimator, at=10, offset=-7_000_000, out=100, back=100, server=server)
        assert estimator.best.offset_ns == -7_000_000
        assert estimator.best.error_ns == 100


def test_error_bound_holds_for_any_asymmetry():
    for out, back in ((0, 1000), (1000, 0), (300, 700)):
        estimator = ClockOffsetEstimator()
        exchange(estimator, at=0, offset=5_000, out=out, back=back)
        assert abs(estimator.best.offset_ns - 5_000) <= estimator.best.error_ns


def test_quickest_exchange_wins_and_is_forgotten_after_the_window():
    estimator = ClockOffsetEstimator(window=3)
    exchange(estimator, at=0, offset=1_000, out=10, back=10)
    exchange(estimator, at=0, offset=2_000, out=50, back=50)
    assert estimator.best.offset_ns == 1_000
    for _ in range(2):
        exchange(estimator, at=0, offset=2_000, out=50, back=50)
    assert estimator.best.offset_ns == 2_000


def test_impossible_exchange_is_left_out():
    estimator = ClockOffsetEstimator()
    estimator.add(sent_ns=0, received_ns=0, replied_ns=100, returned_ns=50)
    assert estimator.best is None
