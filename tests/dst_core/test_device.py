"""Updates run on the device alone: no number is read back, so that a GPU is never waited for."""

import copy
from typing import get_args

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dst_core.agent import Agent
from dst_core.agent_config import AgentConfig, Algorithm, Sobolev
from dst_core.execution import Execution, can_compile
from dst_core.replay import Replay
from dst_core.sobolev_loss import Distance
from dst_core.world_model import Transition

S, A, BATCH = 5, 2, 16
WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


class NothingIsRead(TorchDispatchMode):
    """Refuses every operation whose result depends on numbers that the host would have to see."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        masked = "aten.index" in str(func) and any(t is not None and t.dtype == torch.bool for t in args[1])
        if masked or str(func).startswith(WAITING):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def agent_and_replay(device: str = "cpu", **choices) -> tuple[Agent, Replay]:
    torch.manual_seed(0)
    limit = torch.ones(A)
    config = AgentConfig(**{"hidden": 16, "noise_size": 4, "latent": 2, **choices})
    agent = Agent(config, action_low=-limit, action_high=limit, observation_size=S).to(device)
    replay = Replay(capacity=64, observation_size=S, action_size=A, device=torch.device(device))
    generator = torch.Generator().manual_seed(1)
    for _ in range(32):
        sizes = ((S,), (A,), (), (S,), ())
        row = Transition(*(torch.rand(1, *size, generator=generator).to(device) for size in sizes))
        replay.add(row._replace(terminated=row.terminated.round()))
        agent.observe(row)
    return agent, replay


@pytest.mark.parametrize(
    "choices",
    [
        *({"distance": distance, "sobolev": block} for distance in get_args(Distance) for block in get_args(Sobolev)),
        *({"algorithm": algorithm} for algorithm in get_args(Algorithm) if algorithm != "dst"),
    ],
    ids=str,
)
def test_update_reads_no_number_back(choices: dict[str, str]) -> None:
    agent, replay = agent_and_replay(**choices)
    generator = torch.Generator().manual_seed(2)
    before = copy.deepcopy(agent)
    with NothingIsRead():
        for _ in range(agent.config.actor_delay):
            agent.update(replay.sample(BATCH, generator), generator)
    for part in ("actor", "critics"):
        pairs = zip(getattr(before, part).parameters(), getattr(agent, part).parameters(), strict=True)
        assert any(not torch.equal(one, other) for one, other in pairs), f"{part} did not learn"


def test_reading_is_noticed() -> None:
    for read in (lambda x: float(x[0]), lambda x: x[x > 0], lambda x: bool((x > 0).any())):
        with NothingIsRead(), pytest.raises(AssertionError, match="waits"):
            read(torch.ones(3))


@needs_cuda
@pytest.mark.skipif(not can_compile(torch.device("cuda")), reason="needs Triton and a C++ compiler")
def test_recorded_updates_on_cuda_are_the_eager_ones_and_wait_for_nothing() -> None:
    eager, replay = agent_and_replay("cuda")
    recorded = copy.deepcopy(eager)
    recorded.prepare(Execution(compiled=True, device="cuda"))
    reports = {}
    for agent in (eager, recorded):
        generator = torch.Generator("cuda").manual_seed(2)
        for _ in range(4):  # compiled, warmed up and recorded
            agent.update(replay.sample(BATCH, generator), generator)
        torch.cuda.set_sync_debug_mode("error")
        try:
            reports[agent] = [agent.update(replay.sample(BATCH, generator), generator) for _ in range(6)]
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for one, other in zip(reports[eager], reports[recorded], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
    for one, other in zip(eager.parameters(), recorded.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)
