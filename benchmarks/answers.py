"""What an answer costs in ONNX Runtime: policy.onnx beside its matrix products alone, at several batches and numbers of samples.

Sessions have one thread and work on the caller's, so its processor time is the price, whoever else is on the machine.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.graph_products import products_alone
from benchmarks.timing import Timing, time_in_turn
from server.bundle import load_bundle
from server.runtime import open_session

IN_A_ROW = 20
SECONDS_PER_ANSWER = 3.0  # about; large batches are timed less often
LEAST_RUNS = 10


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One size, timed."""

    batch: int
    samples: int
    policy: Timing
    """All outputs of policy.onnx."""
    products: Timing
    """Its matrix products, in the same session options and with as many outputs as there are products."""
    actor: Timing
    """actor.onnx: the action alone."""
    mflop: float
    """Of the products, in millions of operations."""

    @property
    def ratio(self) -> float:
        """Of medians: policy.onnx over its products alone."""
        return self.policy.p50_us / self.products.p50_us


def measure(bundles: Sequence[Path], *, batches: Sequence[int], runs: int) -> list[Answer]:
    """Time every batch with the policy of every bundle, on golden observations, on the CPU."""
    return [_answer(bundle, batch, runs=runs) for bundle in bundles for batch in batches]


def _answer(path: Path, batch: int, *, runs: int) -> Answer:
    bundle = load_bundle(path)
    samples = bundle.manifest.uncertainty.sample_count
    feed = {"observation": np.resize(bundle.golden["observation"], (batch, len(bundle.manifest.observation)))}
    alone, operations = products_alone(bundle.files["policy.onnx"], feed)
    policy, actor = (open_session(bundle.files[name], name, "cpu") for name in ("policy.onnx", "actor.onnx"))
    products = open_session(alone, "products", "cpu")
    stem, title = f"batch_{batch}_samples_{samples}", f"batch {batch}, {samples} samples"
    calls = {
        (f"{stem}_policy", f"{title}: policy.onnx"): partial(policy.run, None, feed),
        (f"{stem}_products", f"{title}: its products alone"): partial(products.run, None, {}),
        (f"{stem}_actor", f"{title}: actor.onnx"): partial(actor.run, None, feed),
    }
    (trial, *_) = time_in_turn(calls, runs=LEAST_RUNS)
    affordable = max(LEAST_RUNS, int(SECONDS_PER_ANSWER / (3e-6 * trial.p50_us)))
    answer, floor, action = time_in_turn(calls, runs=min(runs, affordable), in_a_row=IN_A_ROW, clock=time.thread_time)
    return Answer(batch=batch, samples=samples, policy=answer, products=floor, actor=action, mflop=operations / 1e6)


def show_answers(answers: Sequence[Answer]) -> None:
    """Print a table for people."""
    table = Table(title="an answer in ONNX Runtime, p50 in us of processor time", title_justify="left")
    for column in ("batch", "samples", "policy.onnx", "its products", "ratio", "actor.onnx", "MFLOP"):
        table.add_column(column, justify="right", no_wrap=True)
    for answer in answers:
        times = (answer.policy.p50_us, answer.products.p50_us, answer.ratio, answer.actor.p50_us, answer.mflop)
        table.add_row(str(answer.batch), str(answer.samples), *(f"{value:.3g}" for value in times))
    Console().print(table)
