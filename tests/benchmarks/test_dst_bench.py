"""Every measurement of dst-bench, small, with the keys that scripts rely on."""

import json
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import growth, reference_bundle, train
from benchmarks.app import Growth, Infer, Train, main, run
from benchmarks.graph_products import products_alone
from benchmarks.products import products_of
from benchmarks.timing import summarise, time_in_turn
from dst_core.graphs import export_graph
from server.bundle import load_bundle
from server.runtime import open_session

MACHINE = {"processor", "cores", "system", "python"}


def measured(command, capsys: pytest.CaptureFixture[str]) -> dict:
    run(command)
    return json.loads(capsys.readouterr().out)


def test_train_gives_the_update_its_parts_and_what_it_is_held_against(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {"observation": 3, "action": 2, "hidden": 8, "batch": 16, "samples": 3}
    result = measured(Train(**sizes, compiled=False, runs=10, json=True), capsys)
    assert set(result) == {"update_ms", "parts_ms", "setting"}
    assert set(result["update_ms"]) == {"dst", "dst_reference", "matmul_floor", "sb3_td3", "sb3_tqc"}
    assert set(result["parts_ms"]) == {"sampling", "world_model", "target", "critic", "actor", "optimiser"}
    assert result["update_ms"]["dst"] > result["update_ms"]["matmul_floor"] > 0
    assert result["update_ms"]["dst"] > result["parts_ms"]["critic"] > result["parts_ms"]["sampling"] > 0
    assert result["setting"].items() >= {**sizes, "device": "cpu", "threads": 1, "compiled": False}.items()
    assert set(result["setting"]) >= MACHINE


def test_growth_gives_every_size_of_every_axis(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(growth, "REFERENCE", {"samples": 4, "batch": 8, "hidden": 8, "action": 2})
    monkeypatch.setattr(growth, "AXES", {"samples": (4, 8), "action": (1, 3)})
    result = measured(Growth(runs=10, figure=tmp_path / "new" / "growth", json=True), capsys)
    sizes = {"samples_4", "samples_8", "action_1", "action_3"}
    assert set(result["update_ms"]) == {f"{size}_{kind}" for size in sizes for kind in ("mmd", "max-sliced-mmd")}
    assert set(result["distance_ms"]) == set(result["update_ms"])
    assert min(result["distance_ms"].values()) > 0
    assert "</svg>" in (tmp_path / "new" / "growth.svg").read_text()
    assert (tmp_path / "new" / "growth.png").stat().st_size > 10_000


def test_peers_that_are_not_installed_are_left_out_and_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "PEERS", ("no_such_package",))
    sizes = {"observation": 3, "action": 2, "hidden": 8, "batch": 16, "samples": 3}
    result = measured(Train(**sizes, compiled=False, runs=10, json=True), capsys)
    assert set(result["update_ms"]) == {"dst", "dst_reference", "matmul_floor"}
    assert "dst-policy-server[bench]" in result["setting"]["peers"]


def test_recorded_products_are_those_of_forward_and_backward() -> None:
    layer = torch.nn.Linear(5, 7)
    x = torch.randn(3, 5, requires_grad=True)
    multiply, gflop = products_of(lambda: layer(x).sum().backward(), torch.device("cpu"))
    assert gflop == pytest.approx(3 * 2 * 3 * 5 * 7 / 1e9), "forward, by the input, by the weight"
    multiply()


def test_calls_in_turn_are_each_timed_as_often() -> None:
    order: list[str] = []
    timings = time_in_turn({("a", "A"): lambda: order.append("a"), ("b", "B"): lambda: order.append("b")}, runs=3)
    assert order == ["a", "a", "b", "b", "a", "b", "a", "b", "a", "b"]
    assert [(timing.key, timing.name, timing.runs) for timing in timings] == [("a", "A", 3), ("b", "B", 3)]


def test_calls_in_a_row_begin_each_turn_with_one_that_is_not_timed() -> None:
    order: list[str] = []
    calls = {(name, name): lambda name=name: order.append(name) for name in "ab"}
    timings = time_in_turn(calls, runs=5, in_a_row=3)
    assert "".join(order) == "aabb" + "aaaabbbb" + "aaabbb"
    assert [timing.runs for timing in timings] == [5, 5]


def test_products_alone_are_the_graphs_own_products_on_the_same_numbers(tmp_path: Path) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(5, 7)
            self.squash = torch.nn.Linear(7, 3)
            self.register_buffer("weight", torch.randn(3, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.tanh(self.squash(torch.nn.functional.silu(self.layer(x))))
            return (hidden @ self.weight).unsqueeze(1) * hidden.unsqueeze(2) @ self.weight.mT

    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    net = Net().eval()
    export_graph(net, {"x": x}, ["y"], tmp_path / "net.onnx")
    alone, operations = products_alone((tmp_path / "net.onnx").read_bytes(), {"x": x.numpy()})
    assert operations == 2 * 6 * (5 * 7 + 7 * 3 + 3 * 4 + 3 * 4 * 3)
    found = open_session(alone, "products", "cpu").run(None, {})
    with torch.no_grad():
        first = net.layer(x)
        second = net.squash(torch.nn.functional.silu(first))
        values = (first, second, torch.tanh(second) @ net.weight, net(x))
    for value in values:
        assert any(one.shape == value.shape and np.allclose(one, value.numpy(), atol=1e-5) for one in found)
    assert len(found) == 4


def test_reference_bundles_of_several_sample_counts_are_of_one_policy(bundles: list[Path]) -> None:
    actors = {(bundle / "actor.onnx").read_bytes() for bundle in bundles}
    counts = [load_bundle(bundle).manifest.uncertainty.sample_count for bundle in bundles]
    assert (len(actors), counts) == (1, [4, 8])


def test_infer_gives_percentiles_for_every_batch_and_detail(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(Infer(bundle=bundle, runs=10, json=True), capsys)
    assert set(result) == {"p50_us", "p99_us", "policy_over_products", "setting"}
    keys = {f"batch_{batch}_{what}" for batch in (1, 8, 64) for what in ("action", "summary", "samples")}
    sizes = {f"batch_{batch}_samples_4" for batch in (1, 8, 64)}
    graphs = {f"{size}_{graph}" for size in sizes for graph in ("policy", "products", "actor")}
    assert set(result["p50_us"]) == set(result["p99_us"]) == keys | graphs | {"batch_1_summary_paced"}
    p50 = result["p50_us"]
    assert result["policy_over_products"] == {
        size: pytest.approx(p50[f"{size}_policy"] / p50[f"{size}_products"]) for size in sizes
    }
    assert all(0 < result["p50_us"][key] <= result["p99_us"][key] for key in keys)
    expected = {"policy": "reference", "observation": 4, "action": 1, "samples": 4}
    assert result["setting"].items() >= expected.items()


def test_table_for_people_names_every_row(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Infer(bundle=bundle, runs=10))
    shown = capsys.readouterr().out
    assert "batch 64, with samples" in shown
    assert "its products" in shown
    assert "p99 [us]" in shown
    assert "policy reference" in shown


def test_percentiles_are_those_of_the_durations() -> None:
    timing = summarise("key", "name", [index * 1e-6 for index in range(101)])
    assert (timing.p50_us, timing.p99_us, timing.runs) == (pytest.approx(50), pytest.approx(99), 101)


def test_interrupted_training_of_the_reference_exports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = reference_bundle.train

    def train_then_report_an_interruption(config) -> int:
        trained(config)
        return 128 + signal.SIGINT

    monkeypatch.setattr(reference_bundle, "train", train_then_report_an_interruption)
    with pytest.raises(KeyboardInterrupt):
        reference_bundle.make_reference_bundle(tmp_path, env="InvertedPendulum-v5", hidden=8, samples=4)
    assert not list(tmp_path.glob("bundle*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--runs", "9"], "--runs must be at least 10"),
        (["train", "--hidden", "0"], "--hidden must be at least 1, got 0"),
        (["train", "--samples", "1"], "samples must be at least 2"),
        (["serve", "--rate", "0"], "--rate must be a finite number > 0, got 0.0"),
        (["infer", "--bundle", "no-such-bundle"], "no-such-bundle"),
    ],
)
def test_what_cannot_be_measured_exits_2_with_the_reason(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dst-bench", *arguments])
    monkeypatch.setenv("COLUMNS", "160")
    try:
        code = main()
    except SystemExit as ended:  # what the command line itself refuses
        code = ended.code
    assert code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors
