"""Time of one inference in process, at several batch sizes, back to back and paced like a control loop."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import Timing, machine, time_call
from server.bundle import load_bundle
from server.runtime import Detail, Runtime

BATCHES = (1, 8, 64)
PACED_HZ = 100


def measure(bundle: Path, *, runs: int) -> tuple[list[Timing], dict[str, Any]]:
    """Time the server's own runtime on a bundle."""
    loaded = load_bundle(bundle)
    runtime = Runtime(loaded)
    manifest = loaded.manifest
    rng = np.random.default_rng(0)
    timings = []
    for batch in BATCHES:
        rows = rng.choice(loaded.golden["observation"], batch).astype(np.float32)
        for detail in (Detail.NONE, Detail.SUMMARY, Detail.SAMPLES):
            name = f"batch {batch}, {'action alone' if detail is Detail.NONE else f'with {detail.value}'}"
            key = f"batch_{batch}_{'action' if detail is Detail.NONE else detail.value}"
            timings.append(time_call(key, name, partial(runtime.infer, rows, detail), runs=runs))
    row = loaded.golden["observation"][:1]
    timings.append(
        time_call(
            "batch_1_summary_paced",
            f"batch 1, with summary, paced at {PACED_HZ} Hz",
            lambda: runtime.infer(row, Detail.SUMMARY),
            runs=min(runs, 500),
            period_s=1 / PACED_HZ,
        )
    )
    setting = {
        "policy": manifest.name,
        "observation": len(manifest.observation),
        "action": len(manifest.action),
        "samples": manifest.uncertainty.sample_count,
        "provider": runtime.provider,
        **machine(),
    }
    return timings, setting
