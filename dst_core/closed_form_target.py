"""The Sobolev Bellman target in closed form: what is shared is computed once, and every derivative is a few matrix products.

Same law and same gradients as `sobolev_target`, which differentiates copies of (s, a) by autograd, at a fraction of the price:

- All samples share the replayed step; where steps are imagined, there are J of them per transition, shared by the target critics, K
  return samples each: M = J K samples per critic. The target enters the squared MMD linearly, so its gradient stays unbiased; samples
  that share a step are dependent. (Truncation drops the largest of this set, the lesser law is chosen by it.)
- Whatever depends on (s, a) alone runs once per transition, whatever depends on (s', a') alone once per step.
- Nothing here needs autograd, so all of it compiles.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dst_core.actor import Actor
from dst_core.critic import GenerativeCritic
from dst_core.targets import (
    TargetLaw,
    TargetSamples,
    TargetSteps,
    lesser_member,
    of_member,
    return_range,
    target_of_law,
)
from dst_core.world_model import Transition
from dst_core.world_models.conditional_vae import ConditionalVae

RETURNS_PER_STEP = 2
"""Return samples that share an imagined step and a target critic, K."""


def draw_steps_noise(
    batch: int,
    *,
    steps: TargetSteps,
    samples: int,
    model: ConditionalVae,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise of the steps for M samples per transition and target critic.

    Returns:
        Of replayed steps that of the posterior's latents, (B, latent); of imagined ones (B, J, latent + S + 1), J = ceil(M / K).
    """
    if steps == "replayed":
        return model.fit_noise(batch, generator)
    like = next(model.parameters())
    shape = (batch, math.ceil(samples / RETURNS_PER_STEP), model.noise_size)
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


@torch.no_grad()
def closed_form_target(
    transition: Transition,
    *,
    steps: TargetSteps,
    steps_noise: Tensor,
    noise: Tensor,
    model: ConditionalVae,
    actor: Actor,
    critic: GenerativeCritic,
    discount: float,
    blocks: Sequence[str],
    law: TargetLaw,
    share: float,
) -> TargetSamples:
    """Samples of the target's law for replayed state-action pairs.

    Args:
        transition: B rows; of their steps nothing is used where others are imagined.
        steps: replayed or imagined.
        steps_noise: as `draw_steps_noise` gives it.
        noise: of the target critics, (E, B, M, noise).
        model: imagines (s', r) and the probability that s' is terminal, or infers the noise behind them.
        actor: the target actor.
        critic: the target critics, E of them.
        discount: per step.
        blocks: gradients stacked below the return, of "action" and "state" in this order.
        law: which critics' samples make the target.
        share: of the largest that are dropped where laws are pooled.

    Returns:
        What `target_of_law` makes of samples whose columns are as `sobolev_target` gives them.
    """
    if steps == "replayed":
        draw, pull_back = model.replay(transition, steps_noise, blocks=blocks)
    else:
        draw, pull_back = model.imagine(transition.observation, transition.action, steps_noise, blocks=blocks)
    (members, batch, samples, _), count = noise.shape, draw.reward.shape[1]
    per_step = math.ceil(samples / count)
    of_steps = functional.pad(noise, (0, 0, 0, count * per_step - samples))
    following = draw.next_observation.flatten(0, 1)
    next_action, to_following = actor.linearised(following)
    of_steps = of_steps.view(members, batch * count, per_step, -1)
    columns = critic.joint_columns(following, next_action, of_steps, blocks=("state", "action") if blocks else ())
    columns = columns.view(members, batch, -1, columns.shape[-1]).permute(1, 2, 0, 3)
    remaining = discount * (1 - draw.termination).unsqueeze(-1)

    def backed_up(future: Tensor) -> Tensor:
        y = draw.reward.unsqueeze(-1) + remaining * future.reshape(batch, count, -1)
        return y.clamp(*return_range(model.reward_range, discount)).view_as(future)

    if law == "lesser":  # before anything is drawn back through actor and model, which would be for nothing
        chosen = lesser_member(backed_up(columns[..., 0])[:, :samples])
        columns, members = of_member(columns, chosen).unsqueeze(2), 1
    shape = (batch, count, per_step * members)
    future, by_following, by_action = columns.reshape(batch * count, -1, columns.shape[-1]).tensor_split(
        [1, 1 + following.shape[-1]], -1
    )
    future = future.view(shape)
    y = backed_up(future).unsqueeze(-1)
    if blocks:
        by_following = (by_following + to_following(by_action)).view(*shape, -1)
        gradients = pull_back(remaining.unsqueeze(-1) * by_following, torch.ones_like(future), -discount * future)
        y = torch.cat([y, gradients], -1)
    joint = y.to(transition.observation.dtype).flatten(1, 2)[:, : samples * members]
    return target_of_law(joint, law=law, share=share, members=members)
