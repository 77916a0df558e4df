"""Every algorithm reaches a known level on two small tasks within the budget of the task's preset, on three seeds of three."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from dst_core.agent_config import Algorithm
from dst_core.presets import preset_of

LEVELS = {"InvertedPendulum-v5": 1000.0, "Pendulum-v1": -250.0}
SEEDS = (0, 1, 2)


def evaluations(log: Path) -> Iterator[tuple[int, float]]:
    """Step and mean return of every evaluation in a log of metrics."""
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        entry = json.loads(line)
        if entry["kind"] == "evaluation":
            yield entry["step"], entry["return_mean"]


def steps_to_level(env: str, algorithm: str, seed: int, out: Path) -> int | None:
    """Environment steps until an evaluation of ten episodes reaches the level, or None; the run ends there."""
    log = out / "metrics.jsonl"
    call = ["--env", env, "--agent.algorithm", algorithm, "--seed", str(seed), "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "dst_core.train", *call, "--forecast-updates", "1"], stdout=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and not any(mean >= LEVELS[env] for _, mean in evaluations(log)):
            time.sleep(1.0)
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) in (0, 130)
    return next((step for step, mean in evaluations(log) if mean >= LEVELS[env]), None)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("algorithm", get_args(Algorithm))
@pytest.mark.parametrize("env", LEVELS)
def test_algorithm_reaches_the_level_within_the_presets_budget(
    env: str, algorithm: str, seed: int, tmp_path: Path
) -> None:
    steps = steps_to_level(env, algorithm, seed, tmp_path / "run")
    seen = list(evaluations(tmp_path / "run" / "metrics.jsonl"))
    assert steps is not None, f"no evaluation reached {LEVELS[env]} in {preset_of(env).steps} steps: {seen}"
