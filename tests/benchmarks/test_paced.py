"""The grid of a control loop, its lateness, and the processes that keep to it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.client_process import Client
from benchmarks.errors import BenchmarkError
from benchmarks.paced import Calls, due_times_ns, paced_calls

PERIOD_S = 0.01


class FakeClock:
    """Time that only the test moves."""

    def __init__(self) -> None:
        self.time_ns = 5_000

    def now_ns(self) -> int:
        return self.time_ns

    def sleep_until_ns(self, deadline_ns: int) -> None:
        self.time_ns = max(self.time_ns, deadline_ns)


def called(durations_ms: list[float], *, warm_up: int = 0, start_ns: int | None = None) -> tuple[Calls, list[float]]:
    """Calls that take the given milliseconds of the fake clock, and when each was made, in milliseconds after the first."""
    clock, made = FakeClock(), []

    def call() -> None:
        made.append(clock.time_ns)
        clock.time_ns += round(durations_ms[len(made) - 1] * 1e6)

    runs = len(durations_ms) - warm_up
    calls = paced_calls(call, runs=runs, period_s=PERIOD_S, warm_up=warm_up, start_ns=start_ns, clock=clock)
    return calls, [(at - made[0]) / 1e6 for at in made]


def test_calls_are_due_on_an_absolute_grid_and_follow_at_once_when_behind() -> None:
    assert called([1, 25, 1, 1, 1, 1, 1, 1, 1])[1] == [0, 10, 35, 36, 40, 50, 60, 70, 80]


def test_a_call_is_late_when_it_has_not_returned_by_the_end_of_its_period() -> None:
    # The 25 ms make their own tick late, and also the next, which ends at 36 ms and was due at 20 ms; that due at 30 ms is in time.
    calls, _ = called([1, 25, 1, 1, 1, 1, 1, 1, 1])
    assert (calls.late, calls.late_share) == (2, 2 / 9)


def test_calls_just_within_their_period_are_not_late_and_many_a_little_over_it_add_up() -> None:
    assert called([10.0] * 9)[0].late == 0
    assert called([0.0, *[10.5] * 3, *[0.0] * 5])[0].late == 3


def test_warm_up_calls_count_neither_as_durations_nor_as_late() -> None:
    calls, made = called([30, *[1] * 10], warm_up=1)
    assert len(made) == 11
    assert calls.durations_s == [pytest.approx(0.001)] * 10
    assert calls.late == 2, "the first two after it were still held up by it"


def test_grid_begins_when_it_is_told_to() -> None:
    clock = FakeClock()
    due = list(due_times_ns(3, period_s=PERIOD_S, clock=clock, start_ns=1_000_000))
    assert due == [1_000_000, 11_000_000, 21_000_000]
    assert clock.time_ns == 21_000_000


def test_no_delay_adds_up_on_the_grid() -> None:
    clock = FakeClock()
    due = []
    for due_ns in due_times_ns(5, period_s=PERIOD_S, clock=clock):
        due.append(due_ns)
        clock.time_ns += 3_000_000
    assert np.diff(due).tolist() == [10_000_000] * 4


def test_stretches_add_up() -> None:
    calls = Calls(durations_s=[1.0], late=1)
    calls.add(Calls(durations_s=[2.0, 3.0], late=0))
    assert (calls.durations_s, calls.late, calls.late_share) == ([1.0, 2.0, 3.0], 1, 1 / 3)


CHILD = """
import contextlib
from benchmarks.child import main
refused = [ConnectionError("not yet")] * 2
@contextlib.contextmanager
def client(case):
    count = 0
    def ask():
        nonlocal count
        if refused:
            raise refused.pop()
        print("noise")
        count += 1
        if count > {most}:
            raise ValueError("the server has gone")
    yield ask
main(clients={{"wire": client}})
"""


def child(tmp_path: Path, *, most: int) -> Client:
    """A client whose server is not there at first, prints among its answers, and goes away after `most` of them."""
    (tmp_path / "case.json").write_text(
        '{"policy": "p", "bundle": "b", "outputs": [], "observations": []}', encoding="utf-8"
    )
    program = CHILD.format(most=most)
    return Client([sys.executable, "-c", program, "ask", "wire", str(tmp_path / "case.json")])


def test_client_process_waits_for_its_server_and_makes_the_calls_it_is_told_to(tmp_path: Path) -> None:
    with child(tmp_path, most=1000) as client:
        for runs in (7, 3):
            client.begin(runs=runs, period_s=0.001, warm_up=2)
            calls = client.result()
            assert len(calls.durations_s) == runs
            assert all(duration > 0 for duration in calls.durations_s)


def test_client_process_that_fails_tells_why(tmp_path: Path) -> None:
    with child(tmp_path, most=5) as client:
        client.begin(runs=10, period_s=0.0)
        with pytest.raises(BenchmarkError, match="the server has gone"):
            client.result()
