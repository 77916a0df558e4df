"""How the price of a DST update, and of its distance alone, grows with samples, batch, width and actions."""

import time
from collections.abc import Callable
from typing import Any

import torch
from rich.progress import track

from benchmarks.timing import Timing, machine, time_in_turn
from benchmarks.train import make_agent
from dst_core.agent_config import AgentConfig
from dst_core.sobolev_loss import Distance, sobolev_loss

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
OF_THE_DISTANCE = ("samples", "batch", "action")


def measure(*, threads: int, runs: int) -> tuple[list[Timing], list[Timing], dict[str, Any]]:
    """Time eager updates in float32, two in a row since the actor moves in every second one; figures are for one.

    Returns:
        Timings of updates and of the distance alone with its gradient, both keyed `axis_value_distance`, and the setting.
    """
    torch.set_num_threads(threads)
    updates, distances = [], []
    points = [(axis, value, distance) for axis, values in AXES.items() for value in values for distance in DISTANCES]
    for axis, value, distance in track(points, description="sizes", transient=True):
        names = f"{axis}_{value}_{distance}", f"{axis} {value}, {distance}"
        sizes = {**REFERENCE, axis: value}
        updates.append(_timed(names, _two_updates(distance=distance, **sizes), runs=runs).halved())
        of_distance = {name: sizes[name] for name in OF_THE_DISTANCE}
        if axis in of_distance:
            distances.append(_timed(names, _distance_alone(distance=distance, **of_distance), runs=runs))
    setting = {"observation": OBSERVATION, **REFERENCE, "threads": threads, "compiled": False, **machine()}
    return updates, distances, setting


def _timed(names: tuple[str, str], call: Callable[[], None], *, runs: int) -> Timing:
    began = time.perf_counter()
    call()
    affordable = int(SECONDS_PER_SIZE / (time.perf_counter() - began))
    (timing,) = time_in_turn({names: call}, runs=min(runs, max(LEAST_RUNS, affordable)))
    return timing


def _two_updates(*, distance: Distance, samples: int, batch: int, hidden: int, action: int) -> Callable[[], None]:
    config = AgentConfig(hidden=hidden, samples=samples, distance=distance)
    agent, replay = make_agent(config, observation=OBSERVATION, action=action, batch=batch, device=torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)

    def updates() -> None:
        for _ in range(2):
            agent.update(replay.sample(batch, generator), generator)

    return updates


def _distance_alone(*, distance: Distance, samples: int, batch: int, action: int) -> Callable[[], None]:
    """Two critics' samples against the untruncated target's, and the gradient by them."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(2, batch, samples, 1 + action, generator=generator, requires_grad=True)
    target = torch.randn(batch, 2 * samples, 1 + action, generator=generator)
    std = torch.ones(1 + action)

    def loss_and_gradient() -> None:
        loss = sobolev_loss(predicted, target, std=std, gradient_weight=1.0, distance=distance, bandwidth=100.0)
        torch.autograd.grad(loss, predicted)

    return loss_and_gradient
