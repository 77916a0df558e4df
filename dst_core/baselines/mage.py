"""MAGE: TD3 whose TD error is also held flat in the action, through a world model.

D'Oro and Jaskowski, "How to learn a useful critic? Model-based action-gradient-estimator policy optimization", NeurIPS 2020.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dst_core.actor import Actor
from dst_core.baselines.td3 import Td3Learner
from dst_core.networks import ActionScale, Standardiser
from dst_core.targets import require_dependence, return_range
from dst_core.world_model import StepModel, Transition


class MageLearner(Td3Learner):
    """Twin Q functions from replayed states, the current actor's actions and imagined steps.

        a = pi(s),   (s', r) = g(s, a, eps),   delta = r + discount (1 - p_end) min Q_target(s', pi_target(s') + noise) - Q(s, a),
        loss = h(delta) + gradient_penalty h(|grad_a delta|),   h the Huber loss with threshold 1.

    Twins, target smoothing and both Huber losses are those of the authors' implementation, and so is the actor's climb of the lesser
    twin. Actions lie in [-1, 1] there and rewards are as they come; here the gradient is that with respect to the action in [-1, 1]
    and delta is divided by the return scale, so that both terms are of order one on every task. The model's reward is that of the
    step (s, a, s'). As in DST, r + discount (...) is held within the returns that the model's rewards allow, its gradient left as it is.

    Args:
        policy: the current actor, observation (B, S) to action (B, A). A function, not a part of this module: it is not trained here.
        gradient_penalty: weight of the gradient's norm against 1 of the TD error; 5 in the paper (1 / lambda at lambda = 0.2).
    """

    uses_model: ClassVar[bool] = True

    def __init__(
        self,
        *,
        policy: Callable[[Tensor], Tensor],
        observation: Standardiser,
        action: ActionScale,
        hidden: int,
        discount: float,
        gradient_penalty: float,
        polyak: float,
        learning_rate: float,
        max_gradient_norm: float,
    ) -> None:
        super().__init__(
            observation=observation,
            action=action,
            hidden=hidden,
            discount=discount,
            polyak=polyak,
            learning_rate=learning_rate,
            max_gradient_norm=max_gradient_norm,
        )
        self.policy = policy
        self.gradient_penalty = gradient_penalty

    def returns(self, observation: Tensor, action: Tensor, generator: torch.Generator) -> Tensor:
        """The lesser of the twins, (1, B, 1) in units of reward."""
        del generator
        twins: Tensor = self.critic(observation, action)
        return twins.amin(0, keepdim=True)

    def step(
        self, transition: Transition, *, model: StepModel | None, actor: Actor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Move the twins one step down the loss; of the replayed transition only the observation is used.

        Raises:
            ValueError: without a world model.
        """
        if model is None:
            raise ValueError("MAGE differentiates through a world model and needs one, got None")
        error, slope, target = self.errors(transition.observation, model=model, actor=actor, generator=generator)
        steepness = torch.linalg.vector_norm(slope, dim=-1)
        loss = _huber(error) + self.gradient_penalty * _huber(steepness)
        return self.move(loss.mean(1).sum(), target)

    def errors(
        self, observation: Tensor, *, model: StepModel, actor: Actor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """TD errors at the current actor's actions and their gradients with respect to the action.

        The action is a leaf: where it came from makes no difference to the derivatives with respect to the critics. The target's
        part of the gradient does not depend on the critics either and is detached.

        Args:
            observation: (B, S).
            model: imagines the step.
            actor: the target actor.
            generator: source of all noise.

        Returns:
            delta (E, B) and its gradient with respect to the action in [-1, 1], (E, B, A), both over the return scale; the target,
            detached, (B, 1) in units of reward.

        Raises:
            ValueError: a world model whose next observation is not differentiable in the action.
        """
        with torch.enable_grad():
            action = self.policy(observation).detach().requires_grad_()
            draw = model.sample(observation, action, generator)
            require_dependence(draw.next_observation, {"action": action}, model)
            future = self.lesser_target(draw.next_observation, actor=actor, generator=generator).squeeze(-1)
            target = draw.reward + self.discount * (1 - draw.termination) * future
            (target_slope,) = torch.autograd.grad(target.sum(), action)
            target = target.detach().clamp(*return_range(model.reward_range, self.discount))
            own = action.detach().expand(2, *action.shape).requires_grad_()
            values = self.critic(observation.expand(2, *observation.shape), own).squeeze(-1)
            (slope,) = torch.autograd.grad(values.sum(), own, create_graph=True)
        scale = self.critic.return_scale
        error = (target - values) / scale
        return error, (target_slope - slope) * self.critic.action.half_range / scale, target.unsqueeze(-1)


def _huber(x: Tensor) -> Tensor:
    return functional.smooth_l1_loss(x, torch.zeros_like(x), reduction="none")
