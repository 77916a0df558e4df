"""The manifest of a bundle, format 2, as docs/bundle.md describes it."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

FORMAT_VERSION = 2

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
PolicyName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9._-]{1,64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Level = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveOrZero = Annotated[float, Field(ge=0)]


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
    return_threshold: float
    """In units of the discounted return."""
    reference_observations: Annotated[int, Field(ge=1)]
    """Observations of the training data that `data_distance` is measured to."""
    observation_gradient: bool
    """Whether the graphs give `observation_gradient_mean`."""

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        for key in ("return_quantile_levels", "gradient_norm_levels"):
            _check_increasing(key, getattr(self, key))
        return self


class Evaluation(Part):
    """Returns over evaluation episodes."""

    episodes: Annotated[int, Field(ge=1)]
    seeds: list[int]
    return_mean: float
    return_std: float
    return_min: float
    untrained_return_mean: float


class Scores(Part):
    """How well quantiles did on episodes that nothing was fitted to; lists have one number per central interval."""

    coverage: list[Share]
    coverage_low: list[Share]
    coverage_high: list[Share]
    """95 % bootstrap interval over episodes."""
    width: list[PositiveOrZero]
    """In units of reward."""
    crps: PositiveOrZero
    bias: float
    """Realised return less predicted mean or median, in units of reward."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for low, high in zip(self.coverage_low, self.coverage_high, strict=False):
            if low > high:
                raise ValueError(f"coverage_low {low} must not lie above coverage_high {high}")
        return self


class Calibration(Part):
    """What held-out episodes say of the served law."""

    episodes: Annotated[int, Field(ge=1)]
    test_episodes: Annotated[int, Field(ge=1)]
    first_seed: Annotated[int, Field(ge=0)]
    first_test_seed: Annotated[int, Field(ge=0)]
    positions: list[float]
    """Where on the raw quantile curve each corrected quantile lies: a level, or beyond the outermost so many standard deviations on."""
    levels: Annotated[list[Level], Field(min_length=1, max_length=256)]
    """Shares of the returns that the scored central intervals claim to hold."""
    raw: Scores
    corrected: Scores
    false_alarm_rate: Level
    critic_disagreement_threshold: PositiveOrZero
    data_distance_threshold: PositiveOrZero

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _check_increasing("levels", self.levels)
        for quantiles in ("raw", "corrected"):
            for key in ("coverage", "coverage_low", "coverage_high", "width"):
                values = getattr(getattr(self, quantiles), key)
                if len(values) != len(self.levels):
                    raise ValueError(
                        f"{quantiles}.{key} must have one number per level ({len(self.levels)}), got {len(values)}"
                    )
        first, last = self.first_seed, self.first_seed + self.episodes
        if self.first_test_seed < last and first < self.first_test_seed + self.test_episodes:
            raise ValueError(
                f"test episodes from seed {self.first_test_seed} must be others than those from seed {first} to {last - 1}"
            )
        return self


class Tolerance(Part):
    """abs(x - golden) <= absolute + relative * abs(golden)."""

    relative: Annotated[float, Field(ge=0)]
    absolute: Annotated[float, Field(ge=0)]


class Manifest(Part):
    """All of `manifest.json`."""

    format_version: Literal[2]
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
    calibration: Calibration | None
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
        levels = len(self.uncertainty.return_quantile_levels)
        if self.calibration is not None and len(self.calibration.positions) != levels:
            raise ValueError(
                f"calibration.positions must have one number per return quantile level ({levels}), "
                f"got {len(self.calibration.positions)}"
            )
        return self

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Observation channel names in vector order."""
        return tuple(channel.name for channel in self.observation)


def limit(value: float | None, unbounded: float) -> float:
    """A channel's limit as a number; `unbounded`, plus or minus infinity, stands for `null`."""
    return math.copysign(math.inf, unbounded) if value is None else float(value)


def _check_increasing(key: str, levels: list[float]) -> None:
    if levels != sorted(set(levels)):
        raise ValueError(f"{key} must increase strictly, got {levels}")
