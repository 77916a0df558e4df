"""Building a task from its Gymnasium id, and refusing the ones that are not flat continuous control."""

import difflib
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np

from sim_bridge.errors import TaskError
from sim_bridge.tasks.perturbations import Environment, box, perturb


def make_task(
    environment_id: str,
    *,
    perturbations: Sequence[str] = (),
    render_mode: str | None = None,
    time_limit: bool = True,
) -> Environment:
    """Build a task with flat Box observations (S,) and bounded flat Box actions (A,).

    Args:
        environment_id: a registered Gymnasium id with its version, for instance `InvertedPendulum-v5`.
        perturbations: `name=scale` texts, see `sim_bridge.tasks.perturbations`.
        render_mode: passed to Gymnasium.
        time_limit: False for episodes that only a terminal state ends, whatever limit the task is registered with.

    Raises:
        TaskError: if the id is unknown, its package is missing, a space does not fit, or a perturbation is invalid.
    """
    name = environment_id.rpartition(":")[2]
    if ":" not in environment_id and name not in gymnasium.registry:
        raise TaskError(f"environment must be a registered Gymnasium id, got {environment_id!r}; {_suggestion(name)}")
    try:
        choices: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        if not time_limit:
            choices["max_episode_steps"] = -1  # Gymnasium's word for none
        env: Environment = gymnasium.make(environment_id, **choices)
    except (gymnasium.error.Error, ImportError) as error:
        raise TaskError(f"environment {environment_id!r} cannot be built: {error}") from error
    try:
        _require_flat_box("observation", environment_id, env.observation_space)
        _require_flat_box("action", environment_id, env.action_space)
        _require_bounded_actions(environment_id, box(env.action_space))
        return perturb(env, perturbations)
    except TaskError:
        env.close()
        raise


def _suggestion(name: str) -> str:
    known = sorted(gymnasium.registry)
    stem = name.partition("-v")[0].lower()
    versions = [known_id for known_id in reversed(known) if known_id.partition("-v")[0].lower() == stem]
    close = versions or difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"did you mean {', '.join(close)}?"
    return "`import gymnasium; gymnasium.pprint_registry()` lists them"


def _require_flat_box(role: str, environment_id: str, space: gymnasium.Space[Any]) -> None:
    if not isinstance(space, gymnasium.spaces.Box):
        cure = (
            "flatten it with gymnasium.wrappers.FlattenObservation"
            if role == "observation" and isinstance(space, (gymnasium.spaces.Dict, gymnasium.spaces.Tuple))
            else "choose a continuous-control task such as InvertedPendulum-v5"
        )
        raise TaskError(f"{role} space of {environment_id} must be a flat Box, got {space}; {cure}")
    if len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
        raise TaskError(
            f"{role} space of {environment_id} must be a flat Box of floating-point numbers, got shape {space.shape} "
            f"of {space.dtype}; images and integer vectors are not supported, choose a state-based task"
        )


def _require_bounded_actions(environment_id: str, space: gymnasium.spaces.Box) -> None:
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all() and (space.low < space.high).all()):
        raise TaskError(
            f"action limits of {environment_id} must be finite with low below high, got low {space.low.tolist()}, "
            f"high {space.high.tolist()}; set them with gymnasium.wrappers.RescaleAction or in the task's model"
        )
