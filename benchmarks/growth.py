"""How the price of a DST update grows with samples, batch, width and actions, everything else at the reference size."""

import time
from collections.abc import Callable
from typing import Any

import torch
from rich.progress import track

from benchmarks.timing import Timing, machine, time_in_turn
from benchmarks.train import make_agent
from dst_core.agent_config import AgentConfig
from dst_core.sobolev_loss import Distance

REFERENCE = {"samples": 10, "batch": 256, "hidden": 256, "action": 6}
OBSERVATION = 17
AXES = {
    "samples": (5, 10, 20, 40, 80),
    "batch": (64, 256, 1024, 4096),
    "hidden": (128, 256, 512, 1024),
    "action": (1, 6, 16, 32),
}
SECONDS_PER_SIZE = 5.0  # about; large sizes are timed less often
LEAST_RUNS = 2
DISTANCES: tuple[Distance, ...] = ("mmd", "max-sliced-mmd")


def measure(*, threads: int, runs: int) -> tuple[list[Timing], dict[str, Any]]:
    """Time eager updates in float32, two in a row since the actor moves in every second one; figures are for one.

    Returns:
        Timings keyed `axis_value_distance`, and the setting.
    """
    torch.set_num_threads(threads)
    timings = []
    points = [(axis, value, distance) for axis, values in AXES.items() for value in values for distance in DISTANCES]
    for axis, value, distance in track(points, description="sizes", transient=True):
        key = f"{axis}_{value}_{distance}"
        call = _two_updates(distance=distance, **{**REFERENCE, axis: value})
        began = time.perf_counter()
        call()
        affordable = int(SECONDS_PER_SIZE / (time.perf_counter() - began))
        times = min(runs, max(LEAST_RUNS, affordable))
        (timing,) = time_in_turn({(key, f"{axis} {value}, {distance}"): call}, runs=times)
        timings.append(timing.halved())
    return timings, {"observation": OBSERVATION, **REFERENCE, "threads": threads, "compiled": False, **machine()}


def _two_updates(*, distance: Distance, samples: int, batch: int, hidden: int, action: int) -> Callable[[], None]:
    config = AgentConfig(hidden=hidden, samples=samples, distance=distance)
    agent, replay = make_agent(config, observation=OBSERVATION, action=action, batch=batch, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def updates() -> None:
        for _ in range(2):
            agent.update(replay.sample(batch, generator), generator)

    return updates
