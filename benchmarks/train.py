"""Time of one DST update and of its parts, beside the plain form, its peers, and the floor of its matrix products."""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.products import products_of
from benchmarks.timing import Timing, machine, time_in_turn
from dst_core.agent import Agent
from dst_core.agent_config import AgentConfig
from dst_core.critic_learner import CriticLearner
from dst_core.execution import choose_execution, keep_compiled_code
from dst_core.networks import polyak
from dst_core.reference import UpdateNoise, reference_update
from dst_core.replay import Replay
from dst_core.run import choose_device
from dst_core.sobolev_loss import Distance
from dst_core.targets import TargetSamples
from dst_core.world_model import Transition

PEERS = ("stable_baselines3", "sb3_contrib")
MANY_UPDATES = 1_000_000  # as in a run long enough for all that pays in the long run


def measure(
    *,
    observation: int,
    action: int,
    hidden: int,
    batch: int,
    samples: int,
    distance: Distance,
    threads: int,
    compiled: bool,
    runs: int,
    device: str,
) -> tuple[list[Timing], list[Timing], dict[str, Any]]:
    """Time updates on random transitions at the sizes given, all forms in turn; with an actor step in every second update.

    Returns:
        Whole updates, parts of DST's, and the setting.
    """
    place = choose_device(device)
    torch.set_num_threads(threads)
    keep_compiled_code()
    execution = choose_execution(
        compile_updates="auto" if compiled else "off",
        precision="auto",
        threads=threads,
        updates=MANY_UPDATES,
        rows=batch * samples,
        width=hidden,
        device=place,
    )
    sizes = {"observation": observation, "action": action, "hidden": hidden, "batch": batch}
    config = AgentConfig(hidden=hidden, samples=samples, distance=distance)
    generator = torch.Generator(place).manual_seed(0)
    agent, replay = make_agent(config, observation=observation, action=action, batch=batch, device=place)
    plain, _ = make_agent(config, observation=observation, action=action, batch=batch, device=place)
    transition = replay.sample(batch, generator)

    def two_updates() -> None:
        for _ in range(2):
            agent.update(replay.sample(batch, generator), generator)

    def two_plain_updates() -> None:
        for with_actor in (False, True):
            drawn = replay.sample(batch, generator)
            reference_update(plain, drawn, UpdateNoise.draw(plain, batch, generator), with_actor=with_actor)

    two_updates()
    floor, operations = products_of(two_updates, place)
    agent.prepare(execution)
    calls: dict[str, Callable[[], object]] = {
        "dst": two_updates,
        "dst_reference": two_plain_updates,
        "matmul_floor": floor,
    }
    if all(importlib.util.find_spec(name) for name in PEERS):
        from benchmarks.train_peers import peer_updates  # noqa: PLC0415 (optional)

        calls |= peer_updates(**sizes, device=str(place))
    names = {
        "dst": "DST",
        "dst_reference": "DST, plain: autograd, eager",
        "matmul_floor": "DST's matrix products alone, float32",
        "sb3_td3": "TD3, Stable-Baselines3",
        "sb3_tqc": "TQC, sb3-contrib",
    }
    updates = time_in_turn({(key, names[key]): _synchronised(call, place) for key, call in calls.items()}, runs=runs)
    parts = time_in_turn(
        {key: _synchronised(call, place) for key, call in _parts(agent, replay, transition, generator).items()},
        runs=runs,
    )
    setting = {
        **sizes,
        "samples": samples,
        "critics": config.critics,
        "distance": distance,
        "target_steps": config.target_steps,
        **dataclasses.asdict(execution),
        "gflop_per_update": round(operations / 2, 2),
        "peers": "measured" if "sb3_tqc" in calls else "not installed: pip install 'dst-policy-server[bench]'",
        "torch": torch.__version__,
        **machine(),
    }
    return [timing.halved() for timing in updates], parts, setting


def make_agent(
    config: AgentConfig, *, observation: int, action: int, batch: int, device: torch.device
) -> tuple[Agent, Replay]:
    """An eager agent of these sizes, and a replay of random transitions."""
    torch.manual_seed(0)
    limit = torch.ones(action, device=device)
    with device:
        agent = Agent(config, action_low=-limit, action_high=limit, observation_size=observation)
    replay = Replay(capacity=4 * batch, observation_size=observation, action_size=action, device=device)
    for _ in range(4 * batch):
        rows = Transition(
            torch.randn(1, observation, device=device),
            torch.rand(1, action, device=device) * 2 - 1,
            torch.randn(1, device=device),
            torch.randn(1, observation, device=device),
            torch.zeros(1, device=device),
        )
        replay.add(rows)
        agent.observe(rows)
    return agent, replay


def _parts(
    agent: Agent, replay: Replay, transition: Transition, generator: torch.Generator
) -> dict[tuple[str, str], Callable[[], object]]:
    critics, batch = agent.critics, len(transition.reward)
    assert isinstance(critics, CriticLearner)

    noise = critics.draw_noise(transition, generator)

    def target() -> TargetSamples:
        return critics.target(transition, noise, model=agent.model, actor=agent.target_actor, generator=generator)

    fixed = target()

    def critic() -> None:
        critics.optimiser.zero_grad()
        torch.autograd.backward(critics.loss(transition, fixed, noise))

    def optimiser() -> None:
        for one in agent.optimisers.values():
            one.step()
        polyak(critics.target_critic, critics.critic, 0.0)
        polyak(agent.target_actor, agent.actor, 0.0)

    return {
        ("sampling", "sampling the replay"): lambda: replay.sample(batch, generator),
        ("world_model", "world model, its step included"): lambda: agent.update_model(transition, generator),
        ("target", "target"): target,
        ("critic", "critics: loss and its gradients"): critic,
        ("actor", "actor, its step included"): lambda: agent.update_actor(transition, generator),
        ("optimiser", "all optimisers and Polyak averages"): optimiser,
    }


def _synchronised(call: Callable[[], object], device: torch.device) -> Callable[[], None]:
    def timed() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return timed
