"""What a calibration is asked for and what it finds, and its JSON."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from dst_core.checkpoint import write_json
from dst_core.errors import CalibrationError

CALIBRATION_FILE = "calibration.json"
FORMAT_VERSION = 4


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """How much to measure, and against which marks."""

    episodes: int = 1000
    """Held-out episodes that set positions and thresholds; at least 39 for the 2.5 % quantile, and 99 for a false-alarm rate of 1 %.
    Corrected 90 % intervals hold 90 % give or take 1 point with 1000, 1.5 with 400."""
    test_episodes: int = 400
    """Other fresh episodes, from which all scores come."""
    false_alarm_rate: float = 0.01
    """Share of ticks of the training task, none before a fall, on which a threshold may be exceeded, in (0, 1)."""
    failure_horizon_s: float = 1.0
    """How early a fall should be warned of, in seconds."""
    levels: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95)
    """Central intervals to score, ascending; each needs both its quantiles among the served ones."""

    def __post_init__(self) -> None:
        for name in ("episodes", "test_episodes"):
            if getattr(self, name) < 2:
                raise CalibrationError(f"--{name.replace('_', '-')} must be at least 2, got {getattr(self, name)}")
        if not 0 < self.false_alarm_rate < 1:
            raise CalibrationError(f"--false-alarm-rate must lie in (0, 1), got {self.false_alarm_rate}")
        if not 0 < self.failure_horizon_s < math.inf:
            raise CalibrationError(f"--failure-horizon-s must be finite and above 0, got {self.failure_horizon_s}")
        if not self.levels:
            raise CalibrationError("--levels must name at least one central interval, for instance 0.9")
        if not all(below < above for below, above in pairwise((0.0, *self.levels, 1.0))):
            given = " ".join(f"{level:g}" for level in self.levels)
            raise CalibrationError(
                f"--levels must lie in (0, 1) and ascend, each once, for instance 0.5 0.9, got {given}"
            )


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over episodes with its 95 % bootstrap interval over episodes."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Scores:
    """How well quantiles hold on fresh episodes, each of which counts once."""

    coverage: tuple[Estimate, ...]
    """Share of realised returns within each central interval of `Calibration.levels`."""
    width: tuple[float, ...]
    """Mean width of each, in units of reward."""
    crps: Estimate
    """From the served quantiles (`dst_core.calibration.scores.quantile_crps`), in units of reward."""
    bias: Estimate
    """Realised return less the predicted `centre`, in units of reward."""
    centre: str
    """`mean` of a raw law; `median` of corrected quantiles, which have no mean."""


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Energy score of the joint law [Z; dZ/da] against true draws, each column in standard deviations of the truth; less is better."""

    law: float
    truth: float
    """Of as many true samples: what a perfect law would get."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A mark that a signal rarely exceeds in the training task."""

    value: float
    alarm_rate: Estimate
    """Share of ticks of the test episodes on which the signal exceeds it, of the same kind of ticks that set the mark."""


@dataclass(frozen=True, kw_only=True)
class WarningSignal:
    """How well one signal tells, tick by tick, that the episode will fall within the horizon."""

    signal: str
    """`-return_cvar`, `1 - gradient_resultant_length`, `critic_disagreement`, `data_distance` or `-return_mean`."""
    auc: Estimate
    """Area under the ROC curve: 0.5 is chance, 1 always higher before a fall."""
    false_alarms: tuple[float, ...]
    """ROC curve: share of the time not before a fall at or above each mark, ascending from 0 to 1."""
    warned: tuple[float, ...]
    """Share of the time before a fall at or above the same marks."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Everything that was measured; Q served quantiles, L central intervals."""

    fingerprint: str
    """Of actor and law (`dst_core.served_law.fingerprint`)."""
    environment: str
    perturbations: tuple[str, ...]
    sample_count: int
    """Return samples behind the law."""
    discount: float
    episodes: int
    test_episodes: int
    first_seed: int
    first_test_seed: int
    ticks: int
    """Ticks of the calibration episodes that were used."""
    test_ticks: int
    """Ticks of the test episodes that were used."""
    quantile_levels: tuple[float, ...]
    """Q"""
    positions: tuple[float, ...]
    """Q, of the corrected quantiles on the predicted quantile curve, see `conformal`."""
    std_floor: float
    """Least predicted standard deviation that the positions beyond the outermost quantiles count in, in units of reward."""
    levels: tuple[float, ...]
    """L"""
    raw: Scores
    """Of the law as the evaluation critic has it."""
    corrected: Scores
    training_critics: Scores
    """Of the raw law of the critics that trained the actor, which are pessimistic on purpose."""
    crps_samples: Estimate
    """CRPS of the raw return samples as an ensemble, in units of reward."""
    realised_mean: float
    """Of the realised discounted returns of the test episodes, each of which counts once, in units of reward."""
    realised_std: float
    pit: tuple[float, ...]
    """Share of realised returns in each of equal bins of the raw law's probability integral transform; all equal if calibrated."""
    energy: Energy | None
    """None where true gradients are not known."""
    false_alarm_rate: float
    critic_disagreement: Threshold
    data_distance: Threshold
    thresholds_with_falls: str | None
    """Why the thresholds and their alarm rates count ticks before a fall too; None where they do not."""
    falls: int
    """Test episodes that ended in a terminal state."""
    failure_horizon_s: float
    failure_horizon_steps: int
    """The same in control periods."""
    warnings: tuple[WarningSignal, ...]
    """Empty where nothing could be said; `no_warnings` tells why."""
    no_warnings: str | None

    def __post_init__(self) -> None:
        self._require_length("positions", self.positions, "quantile_levels")
        for name in ("raw", "corrected", "training_critics"):
            found: Scores = getattr(self, name)
            self._require_length(f"{name}.coverage", found.coverage, "levels")
            self._require_length(f"{name}.width", found.width, "levels")
        if self.std_floor <= 0:
            raise CalibrationError(f"std_floor must be above 0, got {self.std_floor}")
        for name in ("critic_disagreement", "data_distance"):
            mark: Threshold = getattr(self, name)
            if mark.value < 0:
                raise CalibrationError(f"the threshold of {name} must not be negative, got {mark.value}")

    def _require_length(self, name: str, values: Sequence[object], like: str) -> None:
        if len(values) != len(getattr(self, like)):
            raise CalibrationError(f"{name} must be as many as {like}, {len(getattr(self, like))}, got {len(values)}")

    def manifest(self) -> dict[str, Any]:
        """The table `calibration` of docs/bundle.md."""

        def scores(found: Scores) -> dict[str, Any]:
            return {
                "coverage": [estimate.value for estimate in found.coverage],
                "coverage_low": [estimate.low for estimate in found.coverage],
                "coverage_high": [estimate.high for estimate in found.coverage],
                "width": list(found.width),
                "crps": found.crps.value,
                "bias": found.bias.value,
            }

        return {
            "episodes": self.episodes,
            "test_episodes": self.test_episodes,
            "first_seed": self.first_seed,
            "first_test_seed": self.first_test_seed,
            "positions": list(self.positions),
            "levels": list(self.levels),
            "raw": scores(self.raw),
            "corrected": scores(self.corrected),
            "false_alarm_rate": self.false_alarm_rate,
            "critic_disagreement_threshold": self.critic_disagreement.value,
            "data_distance_threshold": self.data_distance.value,
        }

    def to_json(self) -> str:
        """Everything, with the version of this format."""
        return json.dumps(self._plain(), indent=2, allow_nan=False)

    def write(self, run: Path) -> None:
        """Write `calibration.json` into the directory of a run.

        Raises:
            TrainingError: if it cannot be written; what was there is then unchanged.
        """
        write_json(run / CALIBRATION_FILE, self._plain())

    @classmethod
    def read(cls, run: Path) -> "Calibration | None":
        """What `write` left in the directory of a run, if anything.

        Raises:
            CalibrationError: if it cannot be read, is of another version or was edited.
        """
        try:
            text = (run / CALIBRATION_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise CalibrationError(
                f"{run / CALIBRATION_FILE} cannot be read ({error}); calibrate again with dst-calibrate"
            ) from error
        return cls.from_json(text)

    def _plain(self) -> dict[str, Any]:
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """What `to_json` wrote.

        Raises:
            CalibrationError: if it is of another version or was edited.
        """
        try:
            plain = json.loads(text)
            version = plain.pop("format_version")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _damaged(error) from error
        if version != FORMAT_VERSION:
            raise CalibrationError(
                f"{CALIBRATION_FILE} has format version {version}, this version reads {FORMAT_VERSION}; "
                "calibrate again with dst-calibrate"
            )
        try:
            calibration: Calibration = _built(cls, plain)
        except (CalibrationError, TypeError, AttributeError, OverflowError) as error:
            raise _damaged(error) from error
        return calibration


def _damaged(error: Exception) -> CalibrationError:
    return CalibrationError(
        f"{CALIBRATION_FILE} is damaged or was edited ({error}); calibrate again with dst-calibrate"
    )


def _built(kind: Any, plain: Any) -> Any:  # noqa: ANN401 (a type and what it describes)
    """A value of the annotated type from its JSON: dataclasses, tuples and optional values of them."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        if plain.keys() != hints.keys():
            raise TypeError(f"{', '.join(sorted(plain.keys() ^ hints.keys()))} missing or unknown")
        return kind(**{name: _built(hint, plain[name]) for name, hint in hints.items()})  # type: ignore[operator]
    if get_origin(kind) is tuple:
        return tuple(_built(get_args(kind)[0], entry) for entry in plain)
    if get_origin(kind) in {Union, UnionType}:
        return None if plain is None else _built(get_args(kind)[0], plain)
    if isinstance(plain, bool) or not isinstance(plain, (int, float) if kind is float else kind):
        raise TypeError(f"expected {kind.__name__}, got {plain!r}")
    if kind is float and not math.isfinite(plain):
        raise TypeError(f"expected a finite number, got {plain!r}")
    return kind(plain)
