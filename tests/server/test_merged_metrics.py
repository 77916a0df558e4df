import pytest

from server.merged_metrics import MergedMetrics
from server.telemetry import Telemetry
from tests.server.test_telemetry import samples


class Text:
    def __init__(self, text):
        self.text = text

    def exposition(self):
        return self.text


def shown(merged, *running):
    return samples(Text(merged.exposition([telemetry.exposition() for telemetry in running])))


def busy(loaded, decisions, *, sessions):
    telemetry = Telemetry([loaded.manifest])
    for _ in range(decisions):
        telemetry.decided("reacher", "control", queue_ns=1000, inference_ns=300_000, total_ns=700_000)
    for _ in range(sessions):
        telemetry.session_opened("reacher")
    return telemetry


def test_every_series_is_the_sum_over_processes(loaded):
    one, two = busy(loaded, 3, sessions=1), busy(loaded, 4, sessions=2)
    one.shed("reacher", "queue")
    sums = shown(MergedMetrics(), one, two)
    of_one, of_two = samples(one), samples(two)
    assert sums.keys() == of_one.keys() | of_two.keys()
    assert sums == pytest.approx({key: of_one.get(key, 0) + of_two.get(key, 0) for key in sums})
    assert sums["dst_decisions_total", "control", "ok", "reacher"] == 7


def test_sums_of_one_process_are_its_own_text_again(loaded):
    one = busy(loaded, 3, sessions=1)
    assert sorted(MergedMetrics().exposition([one.exposition()]).splitlines()) == sorted(one.exposition().splitlines())


def test_counters_of_an_ended_process_stay_and_its_gauges_go(loaded):
    merged, going, staying = MergedMetrics(), busy(loaded, 3, sessions=2), busy(loaded, 4, sessions=1)
    before = shown(merged, going, staying)
    merged.end(going.exposition())
    after = shown(merged, staying)
    assert after["dst_control_sessions", "reacher"] == 1
    counters = {key for key in before if key[0].endswith(("_total", "_count", "_sum", "_bucket"))}
    assert {key: after[key] for key in counters} == {key: before[key] for key in counters}
    merged.end(staying.exposition())
    assert shown(merged, busy(loaded, 0, sessions=0))["dst_decisions_total", "control", "ok", "reacher"] == 7


def test_what_an_ended_process_counted_of_a_policy_is_hidden_while_that_is_not_loaded(loaded):
    merged, left = MergedMetrics(), busy(loaded, 1, sessions=0)
    merged.end(busy(loaded, 3, sessions=0).exposition())
    left.remove_policy("reacher")
    assert not any("reacher" in key for key in shown(merged, left))
    left.add_policy(loaded.manifest)
    assert shown(merged, left)["dst_decisions_total", "control", "ok", "reacher"] == 4
