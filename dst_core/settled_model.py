"""The world model that the evaluation critic is fitted through: the run's own, settled on all of its replay.

While a run lasts, the world model follows a growing replay at a constant step size, which leaves it a little wrong everywhere; over the
horizon of a return that adds up. Afterwards the data stand still, so it goes on with a step size that falls to almost nothing.
"""

import copy
from collections.abc import Callable, Iterable

import torch

from dst_core.execution import Execution, sheltered
from dst_core.networks import settling
from dst_core.replay import Replay
from dst_core.world_model import LearnedModel, fit_step
from dst_core.world_models.conditional_vae import ConditionalVae


def settled(
    model: LearnedModel,
    replay: Replay,
    *,
    updates: int,
    batch: int,
    learning_rate: float,
    max_gradient_norm: float,
    execution: Execution,
    generator: torch.Generator,
    interrupted: Callable[[], bool],
    track: Callable[[int], Iterable[int]],
) -> LearnedModel | None:
    """A copy of the model after so many more steps on the replay; the model itself stays as it is.

    Args:
        model: learned so far.
        replay: all transitions there will be.
        updates: number of steps, over which the step size falls.
        batch: transitions per step.
        learning_rate: Adam's step size at first.
        max_gradient_norm: gradients are scaled down to it.
        execution: how the losses of a conditional VAE are computed.
        generator: source of all noise.
        interrupted: asked before every step.
        track: given the number of steps, counts them.

    Returns:
        None if interrupted.
    """
    copied = copy.deepcopy(model, {id(model.base): model.base})
    losses_along = copied.losses_along
    if isinstance(copied, ConditionalVae) and copied.has_closed_form:
        losses_along = execution.prepare(losses_along)
    optimiser = torch.optim.Adam(copied.parameters(), lr=learning_rate, fused=True)
    schedule = settling(optimiser, updates)
    for done in track(updates):
        if interrupted():
            return None
        execution.begin_update()
        with sheltered(execution.compiled and not done):
            fit_step(
                copied,
                optimiser,
                replay.sample(batch, generator),
                losses_along=losses_along,
                max_gradient_norm=max_gradient_norm,
                generator=generator,
            )
        schedule.step()
    return copied
