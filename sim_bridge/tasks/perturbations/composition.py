"""From texts `name=scale` to a wrapped task."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sim_bridge.errors import TaskError
from sim_bridge.tasks.perturbations.actuation import ActuationNoise
from sim_bridge.tasks.perturbations.dynamics import DynamicsNoise
from sim_bridge.tasks.perturbations.model_fields import Friction, Gravity, Mass
from sim_bridge.tasks.perturbations.sensors import Delay, Dropout, ObservationNoise
from sim_bridge.tasks.perturbations.wrapper import Environment, PerturbationWrapper

PERTURBATIONS: dict[str, type[PerturbationWrapper]] = {
    kind.name: kind
    for kind in (Friction, Mass, Gravity, DynamicsNoise, ActuationNoise, ObservationNoise, Dropout, Delay)
}
"""All perturbations by name, innermost first: what the robot is, what happens to it, what its sensors make of it, what
of that arrives, and when."""


@dataclass(frozen=True, kw_only=True)
class Perturbation:
    """One source of disturbance."""

    name: str
    """Which one: a key of `PERTURBATIONS`."""
    scale: float
    """Its strength; what it multiplies is said by the wrapper of that name."""

    def __post_init__(self) -> None:
        if self.name not in PERTURBATIONS:
            raise TaskError(f"perturbation must be one of {', '.join(PERTURBATIONS)}, got {self.name!r}")
        kind = PERTURBATIONS[self.name]
        if not (math.isfinite(self.scale) and kind.admits(self.scale)):
            raise TaskError(f"scale of perturbation {self.name!r} must {kind.requirement}, got {self.scale}")


def parse_perturbation(text: str) -> Perturbation:
    """Read `name=scale`, for instance `actuation=0.1`.

    Raises:
        TaskError: if the text has another form, the name is unknown or the scale is not a usable number.
    """
    name, equals, scale = text.partition("=")
    if not equals:
        raise TaskError(
            f"perturbation must be written name=scale with name one of {', '.join(PERTURBATIONS)}, got {text!r}"
        )
    try:
        value = float(scale)
    except ValueError:
        raise TaskError(
            f"scale of perturbation {name!r} must be a number, got {scale!r}; for instance {name}=0.1"
        ) from None
    return Perturbation(name=name.strip(), scale=value)


def perturb(env: Environment, perturbations: Sequence[str]) -> Environment:
    """Wrap a task in perturbations written `name=scale`, in the order of `PERTURBATIONS` whatever theirs is.

    Raises:
        TaskError: if one is malformed, named twice, or impossible for the task.
    """
    parsed = [parse_perturbation(text) for text in perturbations]
    scales = {perturbation.name: perturbation.scale for perturbation in parsed}
    if len(scales) < len(parsed):
        raise TaskError(f"each perturbation must be given once, got {', '.join(perturbations)}")
    for name, kind in PERTURBATIONS.items():
        if name in scales:
            env = kind(env, scales[name])
    return env
