"""Which critic learner an algorithm's name stands for."""

from collections.abc import Callable
from typing import TypedDict

from torch import Tensor

from dst_core.agent_config import AgentConfig
from dst_core.baselines.iqn import IqnLearner
from dst_core.baselines.mage import MageLearner
from dst_core.baselines.mmd import MmdLearner
from dst_core.baselines.td3 import Td3Learner
from dst_core.baselines.tqc import TqcLearner
from dst_core.critic import CRITICS, GenerativeCritic
from dst_core.critic_learner import CriticLearner
from dst_core.networks import ActionScale, Standardiser


class Scales(TypedDict):
    """What every network of an agent shares."""

    observation: Standardiser
    action: ActionScale


class Learning(TypedDict):
    """What every learner takes from the configuration."""

    discount: float
    polyak: float
    learning_rate: float
    max_gradient_norm: float


def generative_critic(config: AgentConfig, *, observation: Standardiser, action: ActionScale) -> GenerativeCritic:
    """The critic of dst and mmd, and the evaluation critic."""
    return CRITICS[config.critic_noise](
        observation=observation,
        action=action,
        hidden=config.hidden,
        noise_size=config.noise_size,
        members=config.critics,
    )


def make_learner(
    config: AgentConfig,
    *,
    observation: Standardiser,
    action: ActionScale,
    policy: Callable[[Tensor], Tensor],
) -> CriticLearner | Td3Learner | TqcLearner | MageLearner | IqnLearner | MmdLearner:
    """The critic learner of `config.algorithm`.

    Args:
        config: the choices.
        observation: scale of the observation, shared with the actor.
        action: limits of the action.
        policy: the current actor, for algorithms that learn at its actions.
    """
    scales = Scales(observation=observation, action=action)
    common = Learning(
        discount=config.discount,
        polyak=config.polyak,
        learning_rate=config.critic_learning_rate or config.learning_rate,
        max_gradient_norm=config.max_gradient_norm,
    )
    match config.algorithm:
        case "dst":
            return CriticLearner(
                generative_critic(config, **scales),
                samples=config.samples,
                target_steps=config.target_steps,
                target_law=config.target_law,
                truncate=config.truncate,
                blocks=config.blocks,
                distance=config.distance,
                kernel=config.kernel,
                bandwidth=config.bandwidth,
                estimator=config.estimator,
                gradient_weight=config.gradient_weight,
                **common,
            )
        case "mmd":
            return MmdLearner(
                generative_critic(config, **scales),
                samples=config.samples,
                truncate=config.truncate,
                kernel=config.kernel,
                bandwidth=config.bandwidth,
                estimator=config.estimator,
                **common,
            )
        case "td3":
            return Td3Learner(**scales, hidden=config.hidden, **common)
        case "mage":
            return MageLearner(
                **scales, hidden=config.hidden, policy=policy, gradient_penalty=config.gradient_penalty, **common
            )
        case "tqc":
            return TqcLearner(
                **scales,
                hidden=config.hidden,
                members=config.critics,
                quantiles=config.quantiles,
                truncate=config.truncate,
                **common,
            )
        case "iqn":
            return IqnLearner(
                **scales,
                hidden=config.hidden,
                members=config.critics,
                samples=config.samples,
                truncate=config.truncate,
                **common,
            )
