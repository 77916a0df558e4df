"""Every choice of the agent reaches the part it is about, and a name stands for what it says."""

from dataclasses import fields

import pytest
import torch

from dst_core.actor import Actor
from dst_core.agent_config import AgentConfig, Algorithm, WorldModel
from dst_core.algorithms import make_learner
from dst_core.baselines.iqn import IqnLearner
from dst_core.baselines.mage import MageLearner
from dst_core.baselines.mmd import MmdLearner
from dst_core.baselines.td3 import Td3Learner
from dst_core.baselines.tqc import TqcLearner
from dst_core.critic import InputNoiseCritic, LayerTwoNoiseCritic
from dst_core.critic_learner import CriticLearner
from dst_core.networks import ActionScale, Standardiser
from dst_core.targets import truncate
from dst_core.world_model import StepModel, Transition, unchanged
from dst_core.world_models.choice import make_world_model
from dst_core.world_models.conditional_vae import ConditionalVae
from dst_core.world_models.gaussian_ensemble import GaussianEnsemble
from dst_core.world_models.mujoco_step import MujocoStep
from dst_core.world_models.normalising_flow import NormalisingFlow
from dst_core.world_models.point_mass import PointMassSimulator
from sim_bridge.tasks import make_task

S, A = 2, 2
UNUSUAL = {
    "discount": 0.9,
    "hidden": 8,
    "critics": 3,
    "samples": 5,
    "quantiles": 7,
    "target_steps": "imagined",
    "target_law": "lesser",
    "truncate": 0.2,
    "sobolev": "full",
    "distance": "max-sliced-mmd",
    "estimator": "biased",
    "kernel": "gaussian",
    "bandwidth": 2.0,
    "gradient_weight": 0.3,
    "gradient_penalty": 1.5,
    "critic_noise": "input",
    "noise_size": 3,
    "latent": 4,
    "polyak": 0.05,
    "learning_rate": 1e-3,
    "critic_learning_rate": 2e-3,
    "max_gradient_norm": 4.0,
}
"""None of them the default."""
OF_ALL = {"discount", "polyak", "max_gradient_norm"}
OF_MMD = {"samples", "truncate", "kernel", "bandwidth", "estimator"}


def scales() -> dict[str, Standardiser | ActionScale]:
    limit = torch.ones(A)
    return {"observation": Standardiser(S), "action": ActionScale(-limit, limit)}


def unusual(algorithm: Algorithm, **changes: object) -> AgentConfig:
    peers = {} if algorithm == "dst" else {"sobolev": "action"}
    config = AgentConfig(**{**UNUSUAL, "algorithm": algorithm, **peers, **changes})
    defaults = AgentConfig()
    assert all(
        getattr(config, name) != getattr(defaults, name) for name in UNUSUAL.keys() - peers.keys() - changes.keys()
    )
    return config


@pytest.mark.parametrize(
    ("algorithm", "kind", "taken", "law"),
    [
        (
            "dst",
            CriticLearner,
            OF_MMD | {"target_steps", "target_law", "blocks", "distance", "gradient_weight"},
            (3, 5),
        ),
        ("mmd", MmdLearner, OF_MMD, (3, 5)),
        ("td3", Td3Learner, set(), (1, 1)),
        ("mage", MageLearner, {"gradient_penalty"}, (1, 1)),
        ("tqc", TqcLearner, {"truncate"}, (3, 7)),
        ("iqn", IqnLearner, {"samples", "truncate"}, (3, 5)),
    ],
)
def test_learner_of_an_algorithm_takes_its_choices(
    algorithm: Algorithm, kind: type[torch.nn.Module], taken: set[str], law: tuple[int, int]
) -> None:
    config = unusual(algorithm)
    learner = make_learner(config, **scales(), policy=lambda observation: observation)
    assert type(learner) is kind
    choices = {entry.name for entry in fields(AgentConfig)} | {"blocks"}
    assert {name for name in choices if hasattr(learner, name)} == OF_ALL | taken
    for name in OF_ALL | taken:
        assert getattr(learner, name) == getattr(config, name), name
    assert learner.optimiser.param_groups[0]["lr"] == config.critic_learning_rate
    plain = make_learner(
        unusual(algorithm, critic_learning_rate=None), **scales(), policy=lambda observation: observation
    )
    assert plain.optimiser.param_groups[0]["lr"] == config.learning_rate
    returns = learner.returns(torch.zeros(4, S), torch.zeros(4, A), torch.Generator().manual_seed(0))
    assert returns.shape == (law[0], 4, law[1])


@pytest.mark.parametrize("algorithm", ["dst", "mmd"])
@pytest.mark.parametrize(("entry", "kind"), [("layer-2", LayerTwoNoiseCritic), ("input", InputNoiseCritic)])
def test_noise_of_a_generative_critic_enters_where_it_is_chosen_to(
    algorithm: Algorithm, entry: str, kind: type[torch.nn.Module]
) -> None:
    config = unusual(algorithm, critic_noise=entry)
    critic = make_learner(config, **scales(), policy=lambda observation: observation).critic
    assert type(critic) is kind
    assert (critic.members, critic.noise_size) == (3, 3)


def world_model(name: WorldModel, environment: str = "PointMass2-v0") -> StepModel:
    env = make_task(environment)
    given = {
        "observation": Standardiser(env.observation_space.shape[0]),
        "action": ActionScale(-torch.ones(A), torch.ones(A)),
    }
    model = make_world_model(unusual("dst", world_model=name), **given, env=env)
    env.close()
    return model


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("cvae", ConditionalVae),
        ("ensemble", GaussianEnsemble),
        ("flow", NormalisingFlow),
        ("simulator", PointMassSimulator),
    ],
)
def test_world_model_is_of_the_kind_that_its_name_says(name: WorldModel, kind: type[object]) -> None:
    model = world_model(name)
    assert type(model) is kind
    assert not isinstance(model, ConditionalVae) or (model.latent, model.base) == (4, unchanged)


def test_hybrid_world_model_is_a_conditional_vae_about_mujocos_step() -> None:
    model = world_model("hybrid", "InvertedPendulum-v5")
    assert type(model) is ConditionalVae
    assert model.latent == 4
    assert isinstance(model.base, MujocoStep)


def test_target_through_a_simulator_is_truncated_as_the_one_in_closed_form_is() -> None:
    torch.manual_seed(0)
    config = unusual("dst", world_model="simulator", target_law="pooled")
    model, parts = world_model("simulator"), scales()
    learner = make_learner(config, **parts, policy=lambda observation: observation)
    actor = Actor(**parts, hidden=8)
    transition = Transition(*(torch.randn(*shape) for shape in ((4, S), (4, A), (4,), (4, S), (4,))))
    noise = learner.draw_noise(transition, torch.Generator().manual_seed(1))

    def target() -> torch.Tensor:
        return learner.target(
            transition, noise, model=model, actor=actor, generator=torch.Generator().manual_seed(2)
        ).joint

    kept = target()
    learner.truncate = 0.0
    whole = target()
    assert whole.shape == (4, 3 * 5, 1 + A + S)
    assert kept.shape == (4, 12, 1 + A + S)
    assert torch.equal(kept, truncate(whole, 0.2))
