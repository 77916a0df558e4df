"""The Sobolev Bellman target: samples of [y; dy/da (; dy/ds)] through the world model, and their truncation."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from dst_core.critic import GenerativeCritic
from dst_core.world_model import LearnedModel, Redraw, ReplayedSteps, StepModel, Transition

TargetLaw = Literal["lesser", "pooled"]
TargetSteps = Literal["replayed", "imagined"]


class TargetSamples(NamedTuple):
    """Samples of the target's joint law, and along which draw of the critics' noise each was made."""

    joint: Tensor
    """(B, K, D), columns as `sobolev_target` gives them."""
    draw: Tensor
    """(B, K), integers below M."""


def is_coupled(law: TargetLaw, share: float) -> bool:
    """Whether critics may be compared with this target along the noise that drove it.

    Not where samples are dropped: which ones then hangs on all noise of the target, and the critics' law, compared along the same noise,
    widens without end over a long horizon.
    """
    return law == "lesser" or not share


def sobolev_target(
    observation: Tensor,
    action: Tensor,
    *,
    model: StepModel,
    actor: Callable[[Tensor], Tensor],
    critic: GenerativeCritic,
    discount: float,
    samples: int,
    blocks: tuple[str, ...] = ("action",),
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Target samples for replayed state-action pairs (method, section 2).

        (s', r) = g(s, a, eps),   a' = pi_target(s'),   y = r + discount (1 - p_end) Z_target(s', a', xi),   Y = [y; dy/da (; dy/ds)].

    y is held within the returns that the model's rewards allow: off-policy bootstrapping diverges where the critic
    extrapolates; its gradient is left as it is. Every sample has its own copy of (s, a), so one backward pass of the
    sum gives each sample's own gradient. The result is detached after that derivative.

    Args:
        observation: (B, S).
        action: (B, A) in the user's units.
        model: imagines (s', r) and the probability that s' is terminal.
        actor: the target actor, observation (R, S) to action (R, A).
        critic: the target critics, E of them, each with its own draws.
        discount: per step.
        samples: M per transition and target critic.
        blocks: gradients stacked below the return, of "action" and "state" in this order.
        noise: of the target critics, (E, B * M, 1, noise), drawn where none is given.
        generator: source of all other noise.

    Returns:
        (B, M * E, D), detached, the E critics' samples of one draw side by side, columns return [reward], action gradient [reward per
        action unit], state gradient [reward per observation unit].

    Raises:
        ValueError: if the imagined next observation does not depend on what the target is to be differentiated by.
    """
    members, batch = critic.members, observation.shape[0]
    copies = (members, batch, samples)
    state = copied(observation, copies).requires_grad_("state" in blocks)
    chosen = copied(action, copies).requires_grad_("action" in blocks)
    inputs = {block: {"action": chosen, "state": state}[block] for block in blocks}
    with torch.enable_grad():
        draw = model.sample(state, chosen, generator)
        require_dependence(draw.next_observation, inputs, model)
        next_action = actor(draw.next_observation)
        if noise is None:
            noise = critic.draw_noise(batch * samples, 1, generator)
        future = critic(
            draw.next_observation.view(members, batch * samples, -1),
            next_action.view(members, batch * samples, -1),
            noise,
        )
        y = draw.reward + discount * (1 - draw.termination) * future.reshape(-1)
        y = y + (y.clamp(*return_range(model.reward_range, discount)) - y).detach()
        gradients = torch.autograd.grad(y.sum(), list(inputs.values())) if inputs else ()
    joint = torch.cat([y.unsqueeze(-1), *gradients], -1).detach()
    return joint.view(*copies, -1).permute(1, 2, 0, 3).flatten(1, 2)


def copied(rows: Tensor, copies: tuple[int, ...]) -> Tensor:
    """Rows (B, ...) as `sobolev_target` lays out their copies (E, B, M): (E * B * M, ...)."""
    return rows[None, :, None].expand(*copies, *rows.shape[1:]).flatten(0, 2)


def replayed_steps(
    model: LearnedModel, transition: Transition, copies: tuple[int, ...], *, redraw: Redraw | None = None
) -> ReplayedSteps:
    """What stands in for the model in `sobolev_target` where the replayed steps of B transitions are backed up, copies (E, B, M)."""
    return ReplayedSteps(model, Transition(*(copied(rows, copies) for rows in transition)), redraw=redraw)


def require_dependence(following: Tensor, inputs: dict[str, Tensor], model: StepModel) -> None:
    """Refuse a next observation (R, S) that the graph of autograd does not lead back to every input; a walk, nothing is differentiated.

    The reward alone would still give gradients, without the part that goes through the future.

    Args:
        following: imagined next observations.
        inputs: where they were imagined from, by the name of the block that is differentiated by it.
        model: what imagined them, for the error.

    Raises:
        ValueError: an input that is not behind them.
    """
    waiting = [get_gradient_edge(following).node] if following.requires_grad else []
    seen: set[Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(source for source, _ in node.next_functions if source is not None)
    for block, x in inputs.items():
        if get_gradient_edge(x).node not in seen:
            raise ValueError(
                f"the {block} gradient of the target needs a world model that is differentiable in the {block}, "
                f"{type(model).__name__} is not: its next observation does not depend on the {block}; "
                f"draw its sample without detaching (add 0 * {block} where it truly does not matter), or leave the block out"
            )


def return_range(reward_range: tuple[Tensor, Tensor], discount: float) -> tuple[Tensor, Tensor]:
    """Least and greatest discounted return, each (), that rewards between those given allow, with an end at any time."""
    low, high = reward_range
    return low.clamp(max=0) / (1 - discount), high.clamp(min=0) / (1 - discount)


def truncate(samples: Tensor, share: float) -> Tensor:
    """Drop the largest `share` of the joint samples by their return (TQC: Kuznetsov et al., ICML 2020).

    Args:
        samples: (B, K, D), column 0 the return; joint samples stay whole.
        share: in [0, 1).

    Returns:
        (B, K - floor(share * K), D), in the order they came.

    Raises:
        ValueError: if the share lies outside [0, 1).
    """
    return _taken(samples, kept(samples, share))


def kept(samples: Tensor, share: float) -> Tensor:
    """Which samples `truncate` keeps, (B, K - floor(share * K)) indices in rising order; arguments and errors as there."""
    if not 0 <= share < 1:
        raise ValueError(f"the truncated share must lie in [0, 1), got {share}")
    rows, count = samples.shape[:2]
    dropped = int(share * count)
    if not dropped:
        return torch.arange(count, device=samples.device).expand(rows, count)
    return samples[..., 0].topk(count - dropped, dim=1, largest=False).indices.sort(1).values


def lesser(samples: Tensor, *, members: int) -> Tensor:
    """The samples of the critic whose mean return is the lesser, (B, M, D) of those of all, (B, M * E, D) as `sobolev_target` gives them.

    The minimum of twin critics (Fujimoto et al., ICML 2018) for whole laws, as in DSAC-T (Duan et al., 2023): unlike truncation it takes
    off what critics disagree about, and leaves what is uncertain about the return itself as it is.
    """
    by_member = samples.view(len(samples), -1, members, samples.shape[-1])
    return of_member(by_member, lesser_member(by_member[..., 0]))


def lesser_member(returns: Tensor) -> Tensor:
    """Which critic's returns, (B, M, E), have the lesser mean: (B,)."""
    return returns.mean(1).argmin(-1)


def of_member(rows: Tensor, chosen: Tensor) -> Tensor:
    """For every row the chosen critic's part, (B, M, D) of (B, M, E, D)."""
    index = chosen.view(-1, 1, 1, 1).expand(len(rows), rows.shape[1], 1, rows.shape[-1])
    return rows.gather(2, index).squeeze(2)


def lesser_target(samples: Tensor, *, members: int) -> TargetSamples:
    """What `lesser` keeps, sample m made along draw m."""
    joint = lesser(samples, members=members)
    return TargetSamples(joint, torch.arange(joint.shape[1], device=joint.device).expand(joint.shape[:2]))


def truncated_target(samples: Tensor, share: float, *, members: int) -> TargetSamples:
    """What `truncate` keeps of the samples of this many critics, (B, M * E, D) as `sobolev_target` gives them."""
    order = kept(samples, share)
    return TargetSamples(_taken(samples, order), order.div(members, rounding_mode="floor"))


def target_of_law(samples: Tensor, *, law: TargetLaw, share: float, members: int) -> TargetSamples:
    """The target that `law` makes of the samples of all critics, (B, M * E, D): `lesser_target`, or `truncated_target` by `share`."""
    if law == "lesser":
        return lesser_target(samples, members=members)
    return truncated_target(samples, share, members=members)


def _taken(samples: Tensor, index: Tensor) -> Tensor:
    return samples.gather(1, index.unsqueeze(-1).expand(-1, -1, samples.shape[-1]))
