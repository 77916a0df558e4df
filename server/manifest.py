"""The manifest of a bundle, format 1, as docs/bundle.md describes it."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

FORMAT_VERSION = 1

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PolicyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9._-]{1,64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Level = Annotated[float, Field(gt=0, lt=1)]


class Part(BaseModel):
    """Numbers are finite, types exact, unknown keys refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ChannelLimits(Part):
    """One channel as written; `null` limits are unbounded, a sensor that never varies has equal ones."""

    name: Name
    unit: Annotated[str, StringConstraints(max_length=64)]
    low: float | None
    high: float | None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"channel {self.name!r}: low {self.low} must not lie above high {self.high}")
        return self


class ActionLimits(ChannelLimits):
    """A channel that an actuator can move."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"channel {self.name!r}: low {self.low} must lie below high {self.high}")
        return self


class Task(Part):
    """What the policy was trained on."""

    environment: Name
    perturbations: list[str]


class Normalisation(Part):
    """Informative: already inside the graphs."""

    observation_mean: list[float]
    observation_std: list[Annotated[float, Field(gt=0)]]


class ObservedRange(Part):
    """Range of each observation channel over the training data."""

    low: list[float]
    high: list[float]


class Uncertainty(Part):
    """How the summary outputs are to be read."""

    discount: Annotated[float, Field(gt=0, le=1)]
    sample_count: Annotated[int, Field(ge=2, le=65536)]
    noise_seed: int
    return_quantile_levels: Annotated[list[Level], Field(min_length=1, max_length=256)]
    cvar_level: Annotated[float, Field(gt=0, le=1)]
    gradient_norm_levels: Annotated[list[Level], Field(min_length=1, max_length=256)]

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        for key in ("return_quantile_levels", "gradient_norm_levels"):
            levels = getattr(self, key)
            if levels != sorted(set(levels)):
                raise ValueError(f"{key} must increase strictly, got {levels}")
        return self


class Evaluation(Part):
    """Returns over evaluation episodes."""

    episodes: Annotated[int, Field(ge=1)]
    seeds: list[int]
    return_mean: float
    return_std: float
    return_min: float
    untrained_return_mean: float


class Tolerance(Part):
    """abs(x - golden) <= absolute + relative * abs(golden)."""

    relative: Annotated[float, Field(ge=0)]
    absolute: Annotated[float, Field(ge=0)]


class Manifest(Part):
    """All of `manifest.json`."""

    format_version: Literal[1]
    name: PolicyName
    version: Sha256
    files: dict[FileName, Sha256]
    task: Task
    observation: Annotated[list[ChannelLimits], Field(min_length=1, max_length=65536)]
    action: Annotated[list[ActionLimits], Field(min_length=1, max_length=4096)]
    control_period_s: Annotated[float, Field(gt=0)]
    normalisation: Normalisation
    observed_range: ObservedRange
    uncertainty: Uncertainty
    training: dict[str, Any]
    libraries: dict[str, str]
    evaluation: Evaluation
    calibration: dict[str, Any] | None
    tolerance: Tolerance

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for vector in ("observation", "action"):
            names = [channel.name for channel in getattr(self, vector)]
            repeated = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
            if repeated:
                raise ValueError(f"{vector} channel names must be unique, repeated: {', '.join(repeated)}")
        size = len(self.observation)
        for key, values in (
            ("normalisation.observation_mean", self.normalisation.observation_mean),
            ("normalisation.observation_std", self.normalisation.observation_std),
            ("observed_range.low", self.observed_range.low),
            ("observed_range.high", self.observed_range.high),
        ):
            if len(values) != size:
                raise ValueError(f"{key} must have one number per observation channel ({size}), got {len(values)}")
        return self

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Observation channel names in vector order."""
        return tuple(channel.name for channel in self.observation)


def limit(value: float | None, unbounded: float) -> float:
    """A channel's limit as a number; `unbounded`, plus or minus infinity, stands for `null`."""
    return math.copysign(math.inf, unbounded) if value is None else float(value)
