"""Time of one DST update and of its parts."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.timing import Timing, machine, time_call
from dst_core.agent import Agent
from dst_core.agent_config import AgentConfig
from dst_core.critic_learner import CriticLearner
from dst_core.replay import Replay
from dst_core.run import choose_device
from dst_core.world_model import Transition


def measure(
    *, observation: int, action: int, hidden: int, batch: int, samples: int, threads: int, runs: int, device: str
) -> tuple[list[Timing], dict[str, Any]]:
    """Time updates on random transitions, eager, at the size given."""
    torch.set_num_threads(threads)
    place = choose_device(device)
    torch.manual_seed(0)
    config = AgentConfig(hidden=hidden, samples=samples)
    limit = torch.ones(action, device=place)
    with place:
        agent = Agent(config, action_low=-limit, action_high=limit, observation_size=observation)
    critics = agent.critics
    assert isinstance(critics, CriticLearner)
    generator = torch.Generator(place).manual_seed(0)
    replay = Replay(capacity=4 * batch, observation_size=observation, action_size=action, device=place)
    for _ in range(4 * batch):
        rows = (
            torch.randn(1, observation, device=place),
            torch.rand(1, action, device=place) * 2 - 1,
            torch.randn(1, device=place),
            torch.randn(1, observation, device=place),
            torch.zeros(1, device=place),
        )
        replay.add(Transition(*rows))
        agent.observe(Transition(*rows))
    transition = replay.sample(batch, generator)

    def part(call: Callable[[], object]) -> Callable[[], None]:
        def timed() -> None:
            call()
            if place.type == "cuda":
                torch.cuda.synchronize()

        return timed

    parts: dict[tuple[str, str], Callable[[], object]] = {
        ("update", "update"): lambda: agent.update(replay.sample(batch, generator), generator),
        ("sampling", "sampling"): lambda: replay.sample(batch, generator),
        ("world_model", "world model"): lambda: agent.update_model(transition, generator),
        ("target", "target"): lambda: critics.target(
            transition, model=agent.model, actor=agent.target_actor, generator=generator
        ),
        ("critic", "critic, target included"): lambda: critics.step(
            transition, model=agent.model, actor=agent.target_actor, generator=generator
        ),
        ("actor", "actor"): lambda: agent.update_actor(transition, generator),
    }
    timings = [time_call(key, name, part(call), runs=runs) for (key, name), call in parts.items()]
    setting = {
        "observation": observation,
        "action": action,
        "hidden": hidden,
        "batch": batch,
        "samples": samples,
        "critics": 2,
        "threads": threads,
        "device": str(place),
        "torch": torch.__version__,
        **machine(),
    }
    return timings, setting
