"""The fast update is the plain one in another order of arithmetic."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from dst_core.agent import Agent
from dst_core.agent_config import AgentConfig
from dst_core.execution import Execution, can_compile
from dst_core.reference import UpdateNoise, reference_joint, reference_target, reference_update
from dst_core.targets import TargetSamples, return_range
from dst_core.world_model import Transition

S, A, BATCH = 5, 3, 16
CPU = torch.device("cpu")
needs_compiler = pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler: torch.compile has nothing to call")
CHOICES = [
    {},
    {"sobolev": "full"},
    {"sobolev": "state", "critic_noise": "input"},
    {"sobolev": "none"},
    {"estimator": "biased"},
    {"distance": "max-sliced-mmd", "samples": 8},
    {"samples": 5, "truncate": 0.25, "risk": "cvar"},
    {"samples": 5, "truncate": 0.0},
    {"target_law": "lesser"},
    {"target_law": "lesser", "samples": 7, "critics": 3, "sobolev": "full"},
    {"target_steps": "imagined"},
    {"target_steps": "imagined", "samples": 5, "truncate": 0.25},
    {"target_steps": "imagined", "target_law": "lesser", "samples": 7, "critics": 3, "sobolev": "full"},
    {"sobolev": "full", "critic_noise": "input", "samples": 12, "critics": 3, "kernel": "gaussian", "bandwidth": 1.0},
]


def agent_and_transition(dtype: torch.dtype = torch.float64, **choices) -> tuple[Agent, Transition]:
    """An agent whose model, scales and clamps all matter: observations far from standard, rewards and steps at their limits."""
    torch.manual_seed(0)
    limit = torch.tensor([1.0, 2.0, 0.5])
    config = AgentConfig(**{"hidden": 24, "noise_size": 4, "latent": 3, "actor_delay": 1, **choices})
    agent = Agent(config, action_low=-limit, action_high=limit, observation_size=S).to(dtype)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    observation = 2.0 + 3.0 * normal(BATCH, S)
    transition = Transition(
        observation,
        limit.to(dtype) * normal(BATCH, A).tanh(),
        5.0 * normal(BATCH),
        observation + 0.5 * normal(BATCH, S),
        (normal(BATCH) > 1).to(dtype),
    )
    agent.observe(transition)
    agent.critics.critic.return_scale.fill_(7.0)
    return agent, transition


def difference(one: Agent, other: Agent) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def both_targets(agent: Agent, transition: Transition) -> tuple[TargetSamples, TargetSamples]:
    """In closed form and by autograd, along the same noise."""
    noise = UpdateNoise.draw(agent, BATCH, torch.Generator().manual_seed(2))
    fast = agent.critics.target_along(
        transition,
        steps_noise=noise.steps,
        noise=noise.target,
        model=agent.model,
        actor=agent.target_actor,
    )
    slow = reference_target(agent, transition, noise)
    return fast, slow


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_target_in_closed_form_equals_that_of_autograd(choices: dict[str, object]) -> None:
    agent, transition = agent_and_transition(**choices)
    fast, slow = both_targets(agent, transition)
    torch.testing.assert_close(fast.joint, slow.joint, rtol=1e-9, atol=1e-9)
    assert torch.equal(fast.draw, slow.draw)


@pytest.mark.parametrize("sobolev", ["none", "full"])
def test_targets_are_held_within_the_returns_that_rewards_allow_in_either_form(sobolev: str) -> None:
    agent, transition = agent_and_transition(sobolev=sobolev, target_law="pooled", truncate=0.0)
    agent.critics.target_critic.return_scale.fill_(1e5)
    fast, slow = both_targets(agent, transition)
    low, high = return_range(agent.model.reward_range, agent.config.discount)
    for bound in (low, high):
        assert bool((slow.joint[..., 0] == bound).any())
    torch.testing.assert_close(fast.joint, slow.joint, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_joint_samples_in_closed_form_equal_those_of_autograd(choices: dict[str, object]) -> None:
    agent, transition = agent_and_transition(**choices)
    learner = agent.critics
    noise = UpdateNoise.draw(agent, BATCH, torch.Generator().manual_seed(2)).critics
    inputs = (transition.observation, transition.action, noise)
    slow = reference_joint(learner.critic, *inputs, blocks=learner.blocks)
    torch.testing.assert_close(learner.critic.joint_columns(*inputs, blocks=learner.blocks), slow, rtol=1e-9, atol=1e-9)


def trained(agent: Agent, transition: Transition, *, plainly: bool, updates: int) -> Agent:
    generator = torch.Generator().manual_seed(2)
    for _ in range(updates):
        if plainly:
            reference_update(agent, transition, UpdateNoise.draw(agent, BATCH, generator))
        else:
            agent.update(transition, generator)
    return agent


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_updates_equal_the_plain_ones(choices: dict[str, object]) -> None:
    agent, transition = agent_and_transition(**choices)
    plain = trained(copy.deepcopy(agent), transition, plainly=True, updates=3)
    start = copy.deepcopy(agent)
    assert difference(trained(agent, transition, plainly=False, updates=3), plain) < 1e-9
    assert difference(start, plain) > 1e-4


@needs_compiler
@pytest.mark.parametrize(
    ("dtype", "precision", "tolerance"),
    [
        pytest.param(torch.float64, "float32", 1e-9, id="float64"),
        pytest.param(torch.float32, "float32", 1e-5, id="float32", marks=pytest.mark.slow),
        pytest.param(torch.float32, "bfloat16", 2e-3, id="bfloat16 products", marks=pytest.mark.slow),
    ],
)
def test_compiled_updates_equal_the_plain_ones(dtype: torch.dtype, precision: str, tolerance: float) -> None:
    torch.compiler.reset()
    counters.clear()
    execution = Execution(compiled=True, precision=precision)
    agent, transition = agent_and_transition(dtype)
    agent.prepare(execution)
    eager, _ = agent_and_transition(dtype)
    plain = trained(eager, transition, plainly=True, updates=2)
    assert difference(trained(agent, transition, plainly=False, updates=2), plain) < tolerance
    assert counters["stats"]["unique_graphs"] == 4, "world model, target, critics, actor"
