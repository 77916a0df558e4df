"""The evaluation critic of a finished run: fitted afresh to its actor, and held against realised returns beside the training critics."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dst_core.critic import GenerativeCritic
from dst_core.critic_bias import Returns, critic_bias
from dst_core.critic_learner import CriticLearner
from dst_core.errors import DivergedError
from dst_core.evaluate import Trajectory, evaluate, evaluation_seeds, torch_policy
from dst_core.execution import Execution, sheltered
from dst_core.forecast import Forecast
from dst_core.metrics import Metrics
from dst_core.model_returns import model_returns
from dst_core.progress import TrainingProgress
from dst_core.run import Run
from dst_core.settled_model import settled
from dst_core.world_model import LearnedModel, StepModel

SAMPLES = 50  # per critic and state, behind the comparison
SETTLING = 4  # steps of the world model for each update of the critic; they cost a fraction of one


def fit_evaluation_critic(
    run: Run,
    *,
    updates: int,
    execution: Execution,
    progress: TrainingProgress,
    metrics: Metrics,
    interrupted: Callable[[], bool],
) -> bool:
    """Fit an evaluation critic to the run's actor and compare it with the training critics; the same from the same run every time.

    Args:
        run: of dst, all of its steps done; gets the critic and, in its progress, the comparison.
        updates: of the critic.
        execution: how they are computed.
        progress: for people.
        metrics: for programs.
        interrupted: asked before every update and every step of the task.

    Returns:
        Whether it was done; interrupted, the run keeps the evaluation critic it had.

    Raises:
        DivergedError: if the critic is not finite; the run keeps the one it had.
    """
    progress.say("fitting the evaluation critic to the finished actor")
    config, agent, noise = run.config, run.agent, run.noise("forecast")
    model: StepModel | None = agent.model
    if isinstance(model, LearnedModel):
        model = settled(
            model,
            run.replay,
            updates=SETTLING * updates,
            batch=config.batch,
            learning_rate=config.agent.learning_rate,
            max_gradient_norm=config.agent.max_gradient_norm,
            execution=execution,
            generator=noise,
            interrupted=interrupted,
            track=progress.track_settling,
        )
    if model is None:
        return False
    imagined = model_returns(
        run.replay,
        most=updates * config.batch,
        batch=config.batch,
        model=model,
        actor=agent.actor,
        discount=config.agent.discount,
        generator=noise,
        interrupted=interrupted,
        track=progress.track_rollouts,
    )
    if imagined is None:
        return False
    forecast = Forecast(run.fresh_critic(), imagined, config=config.agent, updates=updates, execution=execution)
    for done in progress.track_forecast(updates):
        if interrupted():
            return False
        transition = run.replay.sample(config.batch, noise)
        with sheltered(execution.compiled and not done):
            forecast.step(transition, model=model, actor=agent.actor, generator=noise)
    if not all(parameter.isfinite().all() for parameter in forecast.critic.parameters()):
        raise DivergedError(
            f"the evaluation critic is not finite after {updates} updates; look at the task's rewards and observations"
        )
    episodes = evaluate(
        torch_policy(agent.act, run.replay.device),
        environment=config.env,
        perturbations=config.perturb,
        seeds=evaluation_seeds(config.evaluation_episodes),
        interrupted=interrupted,
    )
    if episodes is None:
        return False
    found = compared(run, forecast.critic, episodes.trajectories)
    run.forecast.load_state_dict(forecast.critic.state_dict())
    run.progress |= {"forecast": True, "critics": {"updates": updates, "episodes": len(episodes.seeds), **found}}
    lines = {f"{name}_{measure}": value for name, law in found.items() for measure, value in law.items()}
    metrics.write("forecast", run.progress["step"], updates=updates, episodes=len(episodes.seeds), **lines)
    progress.critics(found, episodes=len(episodes.seeds))
    return True


def compared(run: Run, critic: GenerativeCritic, trajectories: tuple[Trajectory, ...]) -> dict[str, dict[str, float]]:
    """Training critics and evaluation critic against the realised discounted returns of the same episodes.

    Returns:
        Under `training` and `evaluation`, each: `bias`, realised less predicted mean, and `bias_std` over the states, in units of reward;
        `coverage`, the share of returns within the central 90 % interval of the law. Empty where the episodes are too short to tell.
    """
    learner = run.agent.critics
    assert isinstance(learner, CriticLearner)
    found: dict[str, Any] = {}
    for name, law in (("training", learner.critic), ("evaluation", critic)):
        bias = critic_bias(
            trajectories, returns=_samples_of(law), discount=run.config.agent.discount, generator=run.noise("critics")
        )
        if bias is not None:
            found[name] = {"bias": bias.mean, "bias_std": bias.std, "coverage": bias.coverage}
    return found


def _samples_of(critic: GenerativeCritic) -> Returns:
    def returns(observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        samples: Tensor = critic(observation, action, critic.draw_noise(len(observation), SAMPLES, generator))
        return samples

    return returns
