"""What one update moves, and when."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import nn

from dst_core.agent import Agent
from dst_core.agent_config import AgentConfig, WorldModel
from dst_core.world_model import Transition
from sim_bridge.tasks import describe_task, make_task

LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 6.0])
BATCH = 16


def agent_and_transition(**choices) -> tuple[Agent, Transition]:
    torch.manual_seed(0)
    config = AgentConfig(**{"hidden": 16, "noise_size": 4, "latent": 3, "samples": 4, "polyak": 0.1, **choices})
    agent = Agent(config, action_low=LOW, action_high=HIGH, observation_size=3)
    transition = Transition(
        torch.randn(BATCH, 3),
        LOW + (HIGH - LOW) * torch.rand(BATCH, 2),
        torch.randn(BATCH),
        torch.randn(BATCH, 3),
        (torch.rand(BATCH) < 0.3).float(),
    )
    agent.observe(transition)
    return agent, transition


def parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def unchanged(before: dict[str, torch.Tensor], module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if torch.equal(parameter, before[name])}


@pytest.mark.parametrize("risk", ["mean", "cvar", "mean-std"])
@pytest.mark.parametrize("distance", ["mmd", "max-sliced-mmd"])
@pytest.mark.parametrize("sobolev", ["none", "action", "state", "full"])
def test_updates_move_every_parameter_of_every_part(sobolev: str, distance: str, risk: str) -> None:
    agent, transition = agent_and_transition(sobolev=sobolev, distance=distance, risk=risk)
    before = parameters(agent)
    generator = torch.Generator().manual_seed(1)
    for _ in range(agent.config.actor_delay):
        info = agent.update(transition, generator)
    assert unchanged(before, agent) == set()
    assert all(bool(torch.isfinite(value)) for value in info.values())
    assert info.keys() >= {"critic_loss", "model_loss", "termination_loss", "actor_objective"}


@pytest.mark.parametrize(
    "choices",
    [
        *({"algorithm": name} for name in ("td3", "tqc", "mage", "iqn", "mmd")),
        *({"world_model": name} for name in ("ensemble", "flow")),
        {"critic_noise": "input"},
        {"estimator": "biased"},
        {"kernel": "gaussian", "bandwidth": 1.0},
        {"critics": 3},
    ],
    ids=str,
)
def test_every_choice_moves_critics_actor_and_the_model_it_uses(choices: dict[str, object]) -> None:
    agent, transition = agent_and_transition(**choices)
    before = parameters(agent)
    generator = torch.Generator().manual_seed(1)
    for _ in range(agent.config.actor_delay):
        info = agent.update(transition, generator)
    still = unchanged(before, agent)
    if agent.critics.uses_model:
        assert still == set()
    else:
        assert still == {name for name in before if name.startswith("model.")}
    assert all(bool(torch.isfinite(value)) for value in info.values())
    assert info.keys() >= {"critic_loss", "actor_objective", "returns_out_of_range"}


@pytest.mark.parametrize(
    ("environment", "world_model"), [("InvertedPendulum-v5", "hybrid"), ("PointMass2-v0", "simulator")]
)
def test_world_models_that_know_the_task_teach_the_critics(environment: str, world_model: WorldModel) -> None:
    env = make_task(environment)
    contract = describe_task(env)
    agent = Agent(
        AgentConfig(hidden=16, noise_size=4, latent=3, samples=4, world_model=world_model),
        action_low=torch.tensor([channel.low for channel in contract.action]),
        action_high=torch.tensor([channel.high for channel in contract.action]),
        observation_size=len(contract.observation),
        env=env,
    )
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=0)
    rows = []
    for _ in range(BATCH):
        action = rng.uniform(env.action_space.low, env.action_space.high).astype(np.float32)
        following, reward, terminated, _, _ = env.step(action)
        rows.append((observation, action, float(reward), following, float(terminated)))
        observation = env.reset(seed=1)[0] if terminated else following
    columns = (torch.as_tensor(np.array(column), dtype=torch.float32) for column in zip(*rows, strict=True))
    transition = Transition(*columns)
    agent.observe(transition)
    before = parameters(agent)
    for _ in range(agent.config.actor_delay):
        agent.update(transition, torch.Generator().manual_seed(1))
    assert unchanged(before, agent) == set()
    env.close()


@pytest.mark.parametrize(
    "choices",
    [
        *({"algorithm": name} for name in ("dst", "td3", "tqc", "mage", "iqn", "mmd")),
        *({"world_model": name} for name in ("ensemble", "simulator")),
    ],
    ids=str,
)
def test_every_part_lives_on_the_device_it_is_built_on(choices: dict[str, object]) -> None:
    env = make_task("PointMass2-v0")
    with torch.device("meta"):
        limit = torch.ones(2)
        agent = Agent(
            AgentConfig(hidden=8, **choices), action_low=-limit, action_high=limit, observation_size=2, env=env
        )
    tensors = [*agent.named_parameters(), *agent.named_buffers()]
    assert [name for name, tensor in tensors if tensor.device.type != "meta"] == []


def test_world_model_that_knows_the_task_is_refused_without_one() -> None:
    for world_model in ("hybrid", "simulator"):
        with pytest.raises(ValueError, match=world_model):
            agent_and_transition(world_model=world_model)


def test_early_sign_of_divergence_rises_with_returns_that_rewards_do_not_allow() -> None:
    """Rewards within [-3, 3] allow returns within ±300 at discount 0.99."""
    agent, transition = agent_and_transition()
    generator = torch.Generator().manual_seed(1)
    assert float(agent.update_actor(transition, generator)["returns_out_of_range"]) == 0.0
    with torch.no_grad():
        agent.critics.critic.head.bias.fill_(1000.0)
    assert float(agent.update_actor(transition, generator)["returns_out_of_range"]) == 1.0


def test_rewards_that_were_all_zero_are_no_sign_of_divergence() -> None:
    torch.manual_seed(0)
    agent = Agent(AgentConfig(hidden=16), action_low=LOW, action_high=HIGH, observation_size=3)
    generator = torch.Generator().manual_seed(1)
    for reward, share in ((0.0, 0.0), (1e-9, 1.0)):
        transition = Transition(
            torch.randn(BATCH, 3),
            LOW.expand(BATCH, 2),
            torch.full((BATCH,), reward),
            torch.randn(BATCH, 3),
            torch.zeros(BATCH),
        )
        agent.observe(transition)
        assert float(agent.update_actor(transition, generator)["returns_out_of_range"]) == share


def test_actor_moves_only_at_every_delayed_update() -> None:
    agent, transition = agent_and_transition(actor_delay=3)
    generator = torch.Generator().manual_seed(1)
    moved = []
    for _ in range(7):
        before = parameters(agent.actor), parameters(agent.target_actor), parameters(agent.critics.critic)
        info = agent.update(transition, generator)
        still = [
            unchanged(kept, part)
            for kept, part in zip(before, (agent.actor, agent.target_actor, agent.critics.critic), strict=True)
        ]
        assert still[2] == set()
        assert {len(still[0]), len(still[1])} in ({0}, {len(before[0])})
        assert ("actor_objective" in info) == (not still[0])
        moved.append(not still[0])
    assert moved == [False, False, True, False, False, True, False]


def test_target_networks_follow_by_polyak_averaging() -> None:
    agent, transition = agent_and_transition(actor_delay=1)
    generator = torch.Generator().manual_seed(1)
    agent.update(transition, generator)
    pairs = ((agent.target_actor, agent.actor), (agent.critics.target_critic, agent.critics.critic))
    before = [parameters(target) for target, _ in pairs]
    agent.update(transition, generator)
    for kept, (target, source) in zip(before, pairs, strict=True):
        now, online = parameters(target), parameters(source)
        for name, old in kept.items():
            torch.testing.assert_close(now[name], 0.9 * old + 0.1 * online[name])


def test_actor_step_climbs_the_critics_and_leaves_them_where_they_are() -> None:
    agent, transition = agent_and_transition()
    critic, model = parameters(agent.critics.critic), parameters(agent.model)
    objectives = [
        float(agent.update_actor(transition, torch.Generator().manual_seed(5))["actor_objective"]) for _ in range(40)
    ]
    assert objectives[-1] > objectives[0]
    assert unchanged(critic, agent.critics.critic) == critic.keys()
    assert unchanged(model, agent.model) == model.keys()


def test_model_step_moves_the_model_alone() -> None:
    agent, transition = agent_and_transition()
    before = parameters(agent)
    agent.update_model(transition, torch.Generator().manual_seed(1))
    still = unchanged(before, agent)
    assert still == {name for name in before if not name.startswith("model.")}


def test_same_generator_gives_the_same_update() -> None:
    agent, transition = agent_and_transition()
    twin = deepcopy(agent.state_dict())
    infos = [agent.update(transition, torch.Generator().manual_seed(3))]
    other, _ = agent_and_transition()
    other.load_state_dict(twin)
    infos.append(other.update(transition, torch.Generator().manual_seed(3)))
    assert {name: float(value) for name, value in infos[0].items()} == {
        name: float(value) for name, value in infos[1].items()
    }
    torch.testing.assert_close(parameters(agent), parameters(other), rtol=0, atol=0)


def test_action_of_an_observation_is_the_actors_without_noise() -> None:
    agent, transition = agent_and_transition()
    first = agent.act(transition.observation[0])
    assert not first.requires_grad
    torch.testing.assert_close(first, agent.actor(transition.observation)[0].detach())
    torch.testing.assert_close(first, agent.act(transition.observation[0]), rtol=0, atol=0)
