"""The Sobolev Bellman target in closed form: what is shared is computed once, and every derivative is a few matrix products.

Same law and same gradients as `sobolev_target`, which differentiates copies of (s, a) by autograd, at a fraction of the price:

- J steps are imagined per transition and shared by the target critics, K return samples each: M = J K samples per critic. The target
  enters the squared MMD linearly, so its gradient stays unbiased; samples that share a step are dependent, as those of a real
  transition are. (Truncation drops the largest of this set.)
- Whatever depends on (s, a) alone runs once per transition, whatever depends on (s', a') alone once per imagined step.
- Nothing here needs autograd, so all of it compiles.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dst_core.actor import Actor
from dst_core.critic import GenerativeCritic
from dst_core.targets import return_range
from dst_core.world_models.conditional_vae import ConditionalVae

RETURNS_PER_STEP = 2
"""Return samples that share an imagined step and a target critic, K."""


class TargetNoise(NamedTuple):
    """All noise of one target."""

    model: Tensor
    """(B, J, latent + S + 1)"""
    critic: Tensor
    """(E, B, J, K, noise)"""

    @classmethod
    def draw(
        cls,
        batch: int,
        *,
        samples: int,
        model: ConditionalVae,
        critic: GenerativeCritic,
        generator: torch.Generator | None,
    ) -> "TargetNoise":
        """For M samples per transition and target critic, in one call."""
        steps = math.ceil(samples / RETURNS_PER_STEP)
        shapes = (
            (batch, steps, model.noise_size),
            (critic.members, batch, steps, RETURNS_PER_STEP, critic.noise_size),
        )
        like = critic.noise_in
        counts = [math.prod(shape) for shape in shapes]
        noise = torch.randn(sum(counts), generator=generator, device=like.device, dtype=like.dtype)
        parts = noise.tensor_split([counts[0]])
        of_model, of_critic = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return cls(of_model, of_critic)


@torch.no_grad()
def closed_form_target(
    observation: Tensor,
    action: Tensor,
    *,
    noise: TargetNoise,
    model: ConditionalVae,
    actor: Actor,
    critic: GenerativeCritic,
    discount: float,
    samples: int,
    blocks: Sequence[str],
) -> Tensor:
    """Target samples for replayed state-action pairs.

    Args:
        observation: (B, S).
        action: (B, A) in the user's units.
        noise: of J K >= M samples per target critic; those beyond M are not used.
        model: imagines (s', r) and the probability that s' is terminal.
        actor: the target actor.
        critic: the target critics, E of them.
        discount: per step.
        samples: M per transition and target critic.
        blocks: gradients stacked below the return, of "action" and "state" in this order.

    Returns:
        (B, M * E, 1 + D), columns as `sobolev_target` gives them.
    """
    draw, pull_back = model.imagine(observation, action, noise.model, blocks=blocks)
    members, batch, steps, returns_per_step, _ = noise.critic.shape
    following = draw.next_observation.flatten(0, 1)
    next_action, to_following = actor.linearised(following)
    columns = critic.joint_columns(following, next_action, noise.critic.flatten(1, 2), blocks=("state", "action"))
    future, by_following, by_action = (
        columns.permute(1, 2, 0, 3).flatten(1, 2).tensor_split([1, 1 + following.shape[-1]], -1)
    )
    shape = (batch, steps, returns_per_step * members)
    future = future.view(shape)
    remaining = discount * (1 - draw.termination).unsqueeze(-1)
    y = draw.reward.unsqueeze(-1) + remaining * future
    y = y.clamp(*return_range(model.reward_range, discount)).unsqueeze(-1)
    if blocks:
        by_following = (by_following + to_following(by_action)).view(*shape, -1)
        gradients = pull_back(remaining.unsqueeze(-1) * by_following, torch.ones_like(future), -discount * future)
        y = torch.cat([y, gradients], -1)
    return y.to(observation.dtype).flatten(1, 2)[:, : samples * members]
