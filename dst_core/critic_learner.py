"""One critic on its way to the fixed point of the Sobolev Bellman operator: target, loss, step, Polyak average."""

import torch
from torch import Tensor, nn

from dst_core.actor import Actor
from dst_core.closed_form_target import closed_form_target, draw_steps_noise
from dst_core.critic import GenerativeCritic
from dst_core.execution import EAGER, Execution
from dst_core.mmd import Estimator, Kernel
from dst_core.networks import descend, polyak, target_of
from dst_core.sobolev_loss import Distance, JointScale, sobolev_loss
from dst_core.targets import (
    TargetLaw,
    TargetSamples,
    TargetSteps,
    is_coupled,
    replayed_steps,
    sobolev_target,
    target_of_law,
)
from dst_core.world_model import LearnedModel, StepModel, Transition
from dst_core.world_models.conditional_vae import ConditionalVae


class CriticLearner(nn.Module):
    """DST's critics, their target network, the scale of the joint vector and the optimiser.

    Both laws of an update, the critics' and the target's, are drawn along the same noise where `is_coupled` says so.
    """

    uses_model = True

    def __init__(
        self,
        critic: GenerativeCritic,
        *,
        discount: float,
        samples: int,
        target_steps: TargetSteps,
        target_law: TargetLaw,
        truncate: float,
        blocks: tuple[str, ...],
        distance: Distance,
        kernel: Kernel,
        bandwidth: float,
        estimator: Estimator,
        gradient_weight: float,
        polyak: float,
        learning_rate: float,
        max_gradient_norm: float,
    ) -> None:
        super().__init__()
        self.critic = critic
        self.target_critic = target_of(critic)
        sizes = {"action": critic.action.center.shape[0], "state": critic.observation_size}
        self.scale = JointScale(1 + sum(sizes[block] for block in blocks)).to(critic.noise_in.device)
        self.optimiser = torch.optim.Adam(critic.parameters(), lr=learning_rate, fused=True)
        self.discount = discount
        self.samples = samples
        self.target_steps: TargetSteps = target_steps
        self.target_law: TargetLaw = target_law
        self.truncate = truncate
        self.coupled = is_coupled(target_law, truncate)
        self.blocks = blocks
        self.distance: Distance = distance
        self.kernel: Kernel = kernel
        self.bandwidth = bandwidth
        self.estimator: Estimator = estimator
        self.gradient_weight = gradient_weight
        self.polyak = polyak
        self.max_gradient_norm = max_gradient_norm
        self.prepare(EAGER)

    def prepare(self, execution: Execution) -> None:
        """Compute from now on as `execution` says, where target and loss have a closed form."""
        self._closed_form_target = execution.prepare(self.target_along)
        self._loss = execution.prepare(self.loss_along)

    def draw_noise(self, transition: Transition, generator: torch.Generator) -> Tensor:
        """Noise (E, B, M, noise) of the target of an update, and where both laws are coupled of the critics too."""
        return self.critic.draw_noise(len(transition.reward), self.samples, generator)

    def target(
        self, transition: Transition, noise: Tensor, *, model: StepModel, actor: Actor, generator: torch.Generator
    ) -> TargetSamples:
        """Samples of the Sobolev Bellman target's law along noise (E, B, M, noise) of the target critics; arguments as `step`.

        In closed form where model and actor have one; otherwise by autograd. A model that is not learned imagines: it has nothing wrong.
        """
        if isinstance(model, ConditionalVae) and model.has_closed_form and isinstance(actor, Actor):
            steps_noise = draw_steps_noise(
                len(transition.reward),
                steps=self.target_steps,
                samples=self.samples,
                model=model,
                generator=generator,
            )
            return self._closed_form_target(transition, steps_noise=steps_noise, noise=noise, model=model, actor=actor)
        if isinstance(model, LearnedModel) and self.target_steps == "replayed":
            model = replayed_steps(model, transition, noise.shape[:3])
        samples = sobolev_target(
            transition.observation,
            transition.action,
            model=model,
            actor=actor,
            critic=self.target_critic,
            discount=self.discount,
            samples=self.samples,
            blocks=self.blocks,
            noise=noise.flatten(1, 2).unsqueeze(2),
            generator=generator,
        )
        return target_of_law(samples, law=self.target_law, share=self.truncate, members=self.critic.members)

    def target_along(
        self,
        transition: Transition,
        *,
        steps_noise: Tensor,
        noise: Tensor,
        model: ConditionalVae,
        actor: Actor,
    ) -> TargetSamples:
        """Samples of the target's law in closed form along the noise of steps and of target critics."""
        return closed_form_target(
            transition,
            steps=self.target_steps,
            steps_noise=steps_noise,
            noise=noise,
            model=model,
            actor=actor,
            critic=self.target_critic,
            discount=self.discount,
            blocks=self.blocks,
            law=self.target_law,
            share=self.truncate,
        )

    def loss_along(self, observation: Tensor, action: Tensor, target: TargetSamples, noise: Tensor) -> Tensor:
        """Distance of the critics' law along noise (E, B, M, noise) to the target, () in standardised units.

        Args:
            observation: (B, S).
            action: (B, A).
            target: samples of its law.
            noise: that of the target where both are coupled, independent of it otherwise.
        """
        return sobolev_loss(
            self.critic.joint_columns(observation, action, noise, blocks=self.blocks),
            target.joint,
            std=self.scale.std,
            gradient_weight=self.gradient_weight,
            distance=self.distance,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            estimator=self.estimator,
            blocks=self.blocks,
            target_draw=target.draw if self.coupled else None,
        )

    def returns_along(self, observation: Tensor, action: Tensor, noise: Tensor) -> Tensor:
        """`returns` along noise (E, B, N, noise); the critics' parameters get no gradient."""
        frozen = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        returns: Tensor = torch.func.functional_call(self.critic, frozen, (observation, action, noise))
        return returns

    def returns(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """Return samples of every critic, (E, B, N) in units of reward, differentiable in observation (B, S) and action (B, A)."""
        returns: Tensor = self.critic(
            observation, action, self.critic.draw_noise(len(observation), self.samples, generator)
        )
        return returns

    def loss(self, transition: Transition, target: TargetSamples, noise: Tensor) -> Tensor:
        """`loss_along` at the transition."""
        return self._loss(transition.observation, transition.action, target, noise)

    def step(
        self, transition: Transition, *, model: StepModel, actor: Actor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Move both critics one step towards the target through the world model.

        Args:
            transition: replayed, B rows; where steps are imagined, its reward and successor are drawn anew.
            model: imagines the step, or infers the noise behind the replayed one.
            actor: the target actor, whose return is learned.
            generator: source of all noise.

        Returns:
            Scalars: `critic_loss` in standardised units, `target_mean` and `target_std` of the return in units of reward.
        """
        noise = self.draw_noise(transition, generator)
        target = self.target(transition, noise, model=model, actor=actor, generator=generator)
        self.scale.update(target.joint)
        loss = self.loss(transition, target, noise if self.coupled else self.draw_noise(transition, generator))
        descend(self.optimiser, loss, max_gradient_norm=self.max_gradient_norm)
        polyak(self.target_critic, self.critic, self.polyak)
        returns = target.joint[..., 0]
        return {
            "critic_loss": loss.detach(),
            "target_mean": returns.mean(),
            "target_std": returns.std(1, correction=0).mean(),
        }
