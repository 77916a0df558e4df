"""The update as one writes it down: eager, one row of every network per sample, every derivative by autograd.

What `Agent.update` does faster is held against this, in tests for its numbers and in `dst-bench train` for its price.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from dst_core.actor import objective
from dst_core.agent import Agent
from dst_core.closed_form_target import RETURNS_PER_STEP, draw_steps_noise
from dst_core.critic import GenerativeCritic
from dst_core.critic_learner import CriticLearner
from dst_core.networks import descend, polyak
from dst_core.sobolev_loss import sobolev_loss
from dst_core.targets import TargetSamples, copied, replayed_steps, sobolev_target, target_of_law
from dst_core.world_model import ModelDraw, StepModel, Transition
from dst_core.world_models.conditional_vae import ConditionalVae


class UpdateNoise(NamedTuple):
    """All noise of one update, as `Agent.update` draws it from a generator."""

    model: Tensor
    """Of the posterior's latents, (B, latent)."""
    target: Tensor
    """Of the target critics, (E, B, M, noise)."""
    steps: Tensor
    """As `draw_steps_noise` gives it."""
    critics: Tensor
    """Of the critics, (E, B, M, noise): that of the target where both laws are coupled."""
    actor: Tensor
    """(E, B, N, noise)"""

    @classmethod
    def draw(cls, agent: Agent, batch: int, generator: torch.Generator) -> "UpdateNoise":
        """In the order of `Agent.update` with an actor step; of an agent that learns by DST through a conditional VAE."""
        model, learner = agent.model, agent.critics
        assert isinstance(model, ConditionalVae)
        assert isinstance(learner, CriticLearner)
        critic, samples = learner.critic, learner.samples
        of_model = model.fit_noise(batch, generator)
        of_target = critic.draw_noise(batch, samples, generator)
        of_steps = draw_steps_noise(
            batch, steps=learner.target_steps, samples=samples, model=model, generator=generator
        )
        of_critics = of_target if learner.coupled else critic.draw_noise(batch, samples, generator)
        return cls(of_model, of_target, of_steps, of_critics, critic.draw_noise(batch, samples, generator))


class AlongNoise:
    """A conditional VAE that draws along given noise, one row (R, latent + S + 1) for each of its inputs."""

    def __init__(self, model: ConditionalVae, noise: Tensor) -> None:
        self.model = model
        self.noise = noise

    @property
    def reward_range(self) -> tuple[Tensor, Tensor]:
        """That of the model."""
        return self.model.reward_range

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:  # noqa: ARG002
        """The step of every row."""
        drawn = self.model.draw_along(self.model.given(observation, action), self.noise)
        return self.model.step(observation, action, drawn)


def redrawn(
    model: ConditionalVae,
    noise: Tensor,
    given: Tensor,
    outcome: Tensor,
    generator: torch.Generator | None,  # noqa: ARG001 (a Redraw)
) -> Tensor:
    """The model's `redraw` along noise of the posterior's latents, (R, latent)."""
    return model.redraw_along(given, outcome, noise)


def reference_target(agent: Agent, transition: Transition, noise: UpdateNoise) -> TargetSamples:
    """Samples of the target's law: every sample has a step of its own from its own copy of (s, a)."""
    learner, model = agent.critics, agent.model
    assert isinstance(learner, CriticLearner)
    assert isinstance(model, ConditionalVae)
    copies = noise.target.shape[:3]
    members, _, samples = copies
    steps: StepModel
    if learner.target_steps == "replayed":
        redraw = partial(redrawn, model, copied(noise.steps, copies))
        steps = replayed_steps(model, transition, copies, redraw=redraw)
    else:
        of_model = noise.steps.repeat_interleave(RETURNS_PER_STEP, 1)[:, :samples].expand(*copies, -1)
        steps = AlongNoise(model, of_model.flatten(0, 2))
    target = sobolev_target(
        transition.observation,
        transition.action,
        model=steps,
        actor=agent.target_actor,
        critic=learner.target_critic,
        discount=learner.discount,
        samples=samples,
        blocks=learner.blocks,
        noise=noise.target.flatten(1, 2).unsqueeze(2),
    )
    return target_of_law(target, law=learner.target_law, share=learner.truncate, members=members)


def reference_joint(
    critic: GenerativeCritic, observation: Tensor, action: Tensor, noise: Tensor, *, blocks: tuple[str, ...]
) -> Tensor:
    """Joint samples (E, B, N, 1 + D) along noise (E, B, N, noise): a row of the network per sample, differentiated by autograd."""
    members, batch, samples, _ = noise.shape
    inputs = {
        name: x[:, None].expand(batch, samples, -1).flatten(0, 1).expand(members, -1, -1).clone().requires_grad_()
        for name, x in (("state", observation), ("action", action))
    }
    returns = critic(inputs["state"], inputs["action"], noise.reshape(members, batch * samples, 1, -1))
    wanted = [inputs[block] for block in blocks]
    gradients = torch.autograd.grad(returns.sum(), wanted, create_graph=True) if blocks else ()
    return torch.cat([returns, *gradients], -1).view(members, batch, samples, -1)


def reference_update(
    agent: Agent, transition: Transition, noise: UpdateNoise, *, with_actor: bool = True
) -> dict[str, Tensor]:
    """World model and critics, each one step, and the actor where its turn has come: what `Agent.update` does."""
    learner, model, config = agent.critics, agent.model, agent.config
    assert isinstance(learner, CriticLearner)
    assert isinstance(model, ConditionalVae)
    assert agent.model_optimiser is not None
    limit = config.max_gradient_norm

    model.project()
    losses = model.losses_along(transition, noise.model)
    descend(agent.model_optimiser, torch.stack(list(losses.values())).sum(), max_gradient_norm=limit)

    target = reference_target(agent, transition, noise)
    learner.scale.update(target.joint)
    loss = sobolev_loss(
        reference_joint(
            learner.critic, transition.observation, transition.action, noise.critics, blocks=learner.blocks
        ),
        target.joint,
        std=learner.scale.std,
        gradient_weight=learner.gradient_weight,
        distance=learner.distance,
        kernel=learner.kernel,
        bandwidth=learner.bandwidth,
        estimator=learner.estimator,
        blocks=learner.blocks,
        target_draw=target.draw if learner.coupled else None,
    )
    descend(learner.optimiser, loss, max_gradient_norm=limit)
    polyak(learner.target_critic, learner.critic, learner.polyak)

    if not with_actor:
        return {**losses, "critic_loss": loss.detach()}
    returns = learner.critic(transition.observation, agent.actor(transition.observation), noise.actor)
    value = objective(returns, risk=config.risk, risk_level=config.risk_level).mean()
    descend(agent.actor_optimiser, -value / learner.critic.return_scale, max_gradient_norm=limit)
    polyak(agent.target_actor, agent.actor, config.polyak)
    return {**losses, "critic_loss": loss.detach(), "actor_objective": value.detach()}
