"""One critic on its way to the fixed point of the Sobolev Bellman operator: target, loss, step, Polyak average."""

import torch
from torch import Tensor, nn

from dst_core.actor import Actor
from dst_core.closed_form_target import TargetNoise, closed_form_target
from dst_core.critic import GenerativeCritic
from dst_core.execution import EAGER, Execution
from dst_core.mmd import Estimator, Kernel
from dst_core.networks import descend, polyak, target_of
from dst_core.sobolev_loss import Distance, JointScale, sobolev_loss
from dst_core.targets import sobolev_target, truncate
from dst_core.world_model import StepModel, Transition
from dst_core.world_models.conditional_vae import ConditionalVae


class CriticLearner(nn.Module):
    """DST's critics, their target network, the scale of the joint vector and the optimiser."""

    uses_model = True

    def __init__(
        self,
        critic: GenerativeCritic,
        *,
        discount: float,
        samples: int,
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
        self.truncate = truncate
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

    def target(self, transition: Transition, *, model: StepModel, actor: Actor, generator: torch.Generator) -> Tensor:
        """Truncated samples of the Sobolev Bellman target, (B, K, D); arguments as `step`.

        In closed form where model and actor have one; otherwise by autograd.
        """
        if isinstance(model, ConditionalVae) and model.has_closed_form and isinstance(actor, Actor):
            noise = TargetNoise.draw(
                len(transition.reward),
                samples=self.samples,
                model=model,
                critic=self.target_critic,
                generator=generator,
            )
            return self._closed_form_target(transition.observation, transition.action, noise, model, actor)
        samples = sobolev_target(
            transition.observation,
            transition.action,
            model=model,
            actor=actor,
            critic=self.target_critic,
            discount=self.discount,
            samples=self.samples,
            blocks=self.blocks,
            generator=generator,
        )
        return truncate(samples, self.truncate)

    def target_along(
        self, observation: Tensor, action: Tensor, noise: TargetNoise, model: ConditionalVae, actor: Actor
    ) -> Tensor:
        """Truncated samples of the target in closed form along the noise given, (B, K, D)."""
        samples = closed_form_target(
            observation,
            action,
            noise=noise,
            model=model,
            actor=actor,
            critic=self.target_critic,
            discount=self.discount,
            samples=self.samples,
            blocks=self.blocks,
        )
        return truncate(samples, self.truncate)

    def loss_along(self, observation: Tensor, action: Tensor, target: Tensor, noise: Tensor) -> Tensor:
        """Distance of the critics' law along noise (E, B, N, noise) to the target (B, K, D), () in standardised units."""
        return sobolev_loss(
            self.critic.joint_columns(observation, action, noise, blocks=self.blocks),
            target,
            std=self.scale.std,
            gradient_weight=self.gradient_weight,
            distance=self.distance,
            kernel=self.kernel,
            bandwidth=self.bandwidth,
            estimator=self.estimator,
            blocks=self.blocks,
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

    def loss(self, transition: Transition, target: Tensor, generator: torch.Generator) -> Tensor:
        """Distance of the critics' law at the transition to the target (B, K, D), () in standardised units."""
        noise = self.critic.draw_noise(len(transition.reward), self.samples, generator)
        return self._loss(transition.observation, transition.action, target, noise)

    def step(
        self, transition: Transition, *, model: StepModel, actor: Actor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Move both critics one step towards the target through the world model.

        Args:
            transition: replayed, B rows; reward and successor are imagined anew from its observation and action.
            model: imagines the step.
            actor: the target actor, whose return is learned.
            generator: source of all noise.

        Returns:
            Scalars: `critic_loss` in standardised units, `target_mean` and `target_std` of the return in units of reward.
        """
        target = self.target(transition, model=model, actor=actor, generator=generator)
        self.scale.update(target)
        loss = self.loss(transition, target, generator)
        descend(self.optimiser, loss, max_gradient_norm=self.max_gradient_norm)
        polyak(self.target_critic, self.critic, self.polyak)
        returns = target[..., 0]
        return {
            "critic_loss": loss.detach(),
            "target_mean": returns.mean(),
            "target_std": returns.std(1, correction=0).mean(),
        }
