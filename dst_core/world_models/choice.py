"""Which world model a name stands for."""

from typing import TypedDict

import torch

from dst_core.agent_config import AgentConfig
from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import StepFunction, StepModel
from dst_core.world_models.conditional_vae import ConditionalVae
from dst_core.world_models.gaussian_ensemble import GaussianEnsemble
from dst_core.world_models.mujoco_step import mujoco_step_of
from dst_core.world_models.normalising_flow import NormalisingFlow
from dst_core.world_models.point_mass import simulator_of
from sim_bridge.tasks import TaskError
from sim_bridge.tasks.perturbations import Environment, PerturbationWrapper
from sim_bridge.tasks.perturbations.actuation import ActuationNoise
from sim_bridge.tasks.perturbations.dynamics import DynamicsNoise
from sim_bridge.tasks.point_mass import PointMass

ABOUT_THE_STEP = (ActuationNoise, DynamicsNoise)
"""Perturbations that make the task's step scatter about the one without noise, seen as it is."""


class Sizes(TypedDict):
    """What every learned model takes."""

    observation: Standardiser
    action: ActionScale
    hidden: int


def make_world_model(
    config: AgentConfig, *, observation: Standardiser, action: ActionScale, env: Environment | None
) -> StepModel:
    """The world model of `config.world_model`.

    Args:
        config: the choices.
        observation: scale of the observation, shared with the actor.
        action: limits of the action.
        env: the task, for models that know it: hybrid and simulator.

    Raises:
        TaskError: if the task is not one that the model can know.
        ValueError: if the model needs a task and none is given.
    """
    sizes = Sizes(observation=observation, action=action, hidden=config.hidden)
    match config.world_model:
        case "cvae":
            return ConditionalVae(**sizes, latent=config.latent)
        case "ensemble":
            return GaussianEnsemble(**sizes)
        case "flow":
            return NormalisingFlow(**sizes)
        case "hybrid":
            if env is None:
                raise ValueError("world model 'hybrid' must be given the task, got no env; pass the one to learn in")
            return ConditionalVae(**sizes, latent=config.latent, base=mujoco_step_of(env))
        case "simulator":
            return simulator_of(env)


def known_step(env: Environment) -> StepFunction | None:
    """The task's own step without noise, (R, S) and (R, A) to (R, S): what models are judged by.

    None where it is not known, and under every perturbation but noise on the action and kicks of the joints, whose steps scatter about
    this one: elsewhere observations come late, not at all or otherwise than they are, or the robot is not the one of the task's model.
    """
    wrapped = env
    while isinstance(wrapped, PerturbationWrapper):
        if wrapped.scale > 0 and not isinstance(wrapped, ABOUT_THE_STEP):
            return None
        wrapped = wrapped.env
    if isinstance(env.unwrapped, PointMass):
        simulator = simulator_of(env.unwrapped)
        return lambda observation, action: (
            simulator.step(observation, action, torch.zeros_like(observation)).next_observation
        )
    try:
        return mujoco_step_of(env)
    except TaskError:
        return None
