import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.bundle import load_bundle
from server.telemetry import LATENCY_BUCKETS_S, Distribution, Telemetry
from tests.server.small_bundle import CALIBRATION, THRESHOLD


def samples(telemetry):
    """Every series by name and labels, as Prometheus itself reads the text."""
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(telemetry.exposition().decode())
        for sample in family.samples
    }


@pytest.fixture
def telemetry(loaded):
    return Telemetry([loaded.manifest])


def test_histogram_counts_a_value_at_its_bound_below_it():
    values = np.random.default_rng(0).choice([0.0, 1e-5, 2e-5, 1e-3, 0.3, 1.0, 7.0], 500)
    telemetry_buckets = Distribution(LATENCY_BUCKETS_S)
    for value in values:
        telemetry_buckets.observe(float(value))
    cumulative = np.cumsum(telemetry_buckets._counts)
    assert cumulative.tolist() == [int((values <= bound).sum()) for bound in (*LATENCY_BUCKETS_S, np.inf)]
    assert telemetry_buckets._sum == pytest.approx(values.sum())


def test_times_are_shown_in_seconds_by_method_and_stage(telemetry):
    telemetry.decided("reacher", "control", queue_ns=30_000, inference_ns=150_000, total_ns=400_000)
    telemetry.decided("reacher", "infer", queue_ns=0, inference_ns=1, total_ns=2, encode_ns=3_000_000_000, rows=8)
    shown = samples(telemetry)
    name = "dst_stage_latency_seconds"
    assert shown[f"{name}_sum", "control", "reacher", "total"] == 0.0004
    assert shown[f"{name}_bucket", "0.0002", "control", "inference", "reacher"] == 1
    assert shown[f"{name}_bucket", "0.0001", "control", "inference", "reacher"] == 0
    assert shown[f"{name}_sum", "encode", "infer", "reacher"] == 3
    assert (f"{name}_sum", "control", "encode", "reacher") not in shown
    assert shown["dst_decisions_total", "infer", "ok", "reacher"] == 8
    assert shown[f"{name}_count", "infer", "reacher", "total"] == 1


def test_rates_begin_at_zero_once_a_method_is_used(telemetry):
    telemetry.refused("reacher", "act", "expired")
    shown = samples(telemetry)
    assert shown["dst_decisions_total", "act", "expired", "reacher"] == 1
    assert shown["dst_decisions_total", "act", "ok", "reacher"] == 0
    assert shown["dst_stage_latency_seconds_count", "act", "reacher", "total"] == 0


def test_gauges_show_what_is_and_counters_what_was(telemetry):
    telemetry.session_opened("reacher")
    telemetry.session_opened("reacher")
    telemetry.session_closed("reacher")
    telemetry.queue_depth("reacher", 7)
    telemetry.queue_depth("reacher", 3)
    telemetry.granted_load = {"reacher": 0.25}.__getitem__
    telemetry.late_ticks("reacher", 4)
    telemetry.batch("reacher", 8)
    telemetry.batch("reacher", 9)
    telemetry.shed("reacher", "queue_full")
    telemetry.promised("reacher", granted=True)
    telemetry.promised("reacher", granted=False)
    telemetry.promised("reacher", granted=False)
    shown = samples(telemetry)
    assert shown["dst_control_sessions", "reacher"] == 1
    assert shown["dst_queue_depth", "reacher"] == 3
    assert shown["dst_granted_load", "reacher"] == 0.25
    assert shown["dst_robot_late_ticks_total", "reacher"] == 4
    assert (shown["dst_batch_rows_bucket", "8.0", "reacher"], shown["dst_batch_rows_count", "reacher"]) == (1, 2)
    assert shown["dst_sheds_total", "queue_full", "reacher"] == 1
    assert shown["dst_promises_total", "granted", "reacher"] == 1
    assert shown["dst_promises_total", "reacher", "refused"] == 2


def served(runtime_summary, **values):
    return dataclasses.replace(runtime_summary, **values)


@pytest.fixture(scope="module")
def summary():
    """A summary as decisions carry it, its numbers replaced by the tests."""
    from protos.codec import Summary

    fields = {field.name: 0.0 for field in dataclasses.fields(Summary)}
    return Summary(**fields)


def test_share_of_decisions_over_a_calibrated_threshold_can_be_read(telemetry, summary):
    at = CALIBRATION["critic_disagreement_threshold"]
    for ratio in (0.1, 1.0, 1.01, 4.0):
        telemetry.uncertainty("reacher", served(summary, critic_disagreement=ratio * at, data_distance=0.1))
    shown = samples(telemetry)
    name = "dst_critic_disagreement_ratio"
    assert shown[f"{name}_count", "reacher"] - shown[f"{name}_bucket", "1.0", "reacher"] == 2
    assert shown["dst_data_distance_ratio_bucket", "1.0", "reacher"] == 4


def test_stated_danger_is_counted(telemetry, summary):
    telemetry.uncertainty("reacher", served(summary, return_below_threshold=0.6, return_cvar=THRESHOLD - 0.1))
    telemetry.uncertainty("reacher", served(summary, return_below_threshold=0.0, return_cvar=THRESHOLD))
    shown = samples(telemetry)
    assert shown["dst_cvar_below_threshold_total", "reacher"] == 1
    assert shown["dst_return_below_threshold_ratio_bucket", "0.0", "reacher"] == 1
    assert shown["dst_return_below_threshold_ratio_bucket", "0.8", "reacher"] == 2


def test_policy_without_thresholds_shows_no_ratio_to_them(uncalibrated, summary):
    telemetry = Telemetry([load_bundle(uncalibrated).manifest])
    telemetry.uncertainty("reacher", summary)
    shown = samples(telemetry)
    assert ("dst_critic_disagreement_ratio_count", "reacher") not in shown
    assert ("dst_data_distance_ratio_count", "reacher") not in shown
    assert shown["dst_return_below_threshold_ratio_count", "reacher"] == 1


def test_unloaded_policy_is_not_shown_and_counts_on_when_it_comes_back(telemetry, loaded):
    telemetry.refused("reacher", "act", "failed")
    telemetry.session_opened("reacher")
    telemetry.remove_policy("reacher")
    assert samples(telemetry) == {}
    telemetry.session_closed("reacher")
    telemetry.add_policy(loaded.manifest)
    shown = samples(telemetry)
    assert shown["dst_decisions_total", "act", "failed", "reacher"] == 1
    assert shown["dst_control_sessions", "reacher"] == 0


def test_operations_page_names_every_metric_and_no_other(telemetry, summary):
    telemetry.decided("reacher", "act", queue_ns=1, inference_ns=1, total_ns=1)
    telemetry.uncertainty("reacher", summary)
    telemetry.shed("reacher", "queue")
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(dst_\w+)` \|", page, re.MULTILINE))
    shown = {
        name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for name, *_ in samples(telemetry)
    }
    assert documented == shown | {"dst_workers_ready", "dst_worker_restarts_total"}
