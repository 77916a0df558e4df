"""The JSON of the HTTP interface: bodies, replies, and the checks of an observation."""

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from protos.codec import FloatArray
from server.core import Decision, ServedPolicy
from server.errors import InvalidInputError
from server.manifest import Calibration
from server.runtime import Detail


class ErrorReply(BaseModel):
    """What went wrong and what to do about it."""

    error: str


class ChannelReply(BaseModel):
    """One number of a vector; a limit is null where unbounded."""

    name: str
    unit: str
    low: float | None
    high: float | None


class CalibrationReply(BaseModel):
    """What held-out episodes say of the served law; lists have one number per interval level."""

    false_alarm_rate: Annotated[
        float,
        Field(
            description="Bound, for each signal alone: a random tick of a random episode of the training task, among those not "
            "about to fall, exceeds its threshold with at most this probability. Act on a run of such ticks, not on one."
        ),
    ]
    critic_disagreement_threshold: float
    data_distance_threshold: float
    interval_levels: list[float]
    raw_coverage: list[float]
    corrected_coverage: list[float]
    test_episodes: int


class PolicyReply(BaseModel):
    """A loaded policy and its contract."""

    name: str
    version: str
    environment: str
    perturbations: Annotated[
        list[str], Field(description="Of the task, name=scale: trained, evaluated and calibrated under these.")
    ]
    contract: str
    observation: list[ChannelReply]
    action: list[ChannelReply]
    control_period_s: float
    discount: float
    return_quantile_levels: list[float]
    cvar_level: float
    gradient_norm_levels: list[float]
    sample_count: int
    return_threshold: float
    observation_gradient: bool
    calibrated: bool
    calibration: Annotated[
        CalibrationReply | None, Field(description="Null: the stated ranges are the critics' own belief.")
    ]
    execution_provider: str


class ActBody(BaseModel):
    """One observation."""

    model_config = ConfigDict(extra="forbid")

    observation: Annotated[
        Any,
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "array", "items": {"type": "number"}},
                    {"type": "object", "additionalProperties": {"type": "number"}},
                ],
                "description": "Numbers in contract order, or an object from channel name to number.",
            }
        ),
    ]
    detail: Annotated[Detail, Field(description="How much uncertainty the reply carries.")] = Detail.SUMMARY
    timeout_ms: Annotated[
        float | None, Field(gt=0, le=3.6e6, description="After this time the observation is not computed any more.")
    ] = None


class SummaryReply(BaseModel):
    """Summary of the joint law of the return and its gradients; levels and threshold are the policy's."""

    return_mean: float
    return_std: float
    return_quantiles_raw: list[float]
    return_quantiles_corrected: Annotated[list[float] | None, Field(description="Null where not calibrated.")]
    return_cvar: float
    return_below_threshold: float
    gradient_mean: list[float]
    gradient_std: list[float]
    gradient_norm_quantiles: list[float]
    gradient_sign_agreement: list[float]
    gradient_resultant_length: float
    critic_disagreement: float
    data_distance: float
    observation_gradient_mean: Annotated[list[float] | None, Field(description="Null where not served.")]


class SamplesReply(BaseModel):
    """Raw joint samples: gradient i belongs to return i."""

    returns: list[float]
    action_gradients: list[list[float]]


class ActReply(BaseModel):
    """One decision; what was not asked for is null."""

    policy: str
    policy_version: str
    action: list[float]
    summary: SummaryReply | None
    samples: SamplesReply | None
    queue_ms: float
    inference_ms: float


def policy_reply(policy: ServedPolicy) -> PolicyReply:
    """The contract of a loaded policy."""
    manifest = policy.manifest
    return PolicyReply(
        name=manifest.name,
        version=manifest.version,
        environment=manifest.task.environment,
        perturbations=manifest.task.perturbations,
        contract=policy.fingerprint,
        observation=[ChannelReply(**channel.model_dump()) for channel in manifest.observation],
        action=[ChannelReply(**channel.model_dump()) for channel in manifest.action],
        control_period_s=manifest.control_period_s,
        discount=manifest.uncertainty.discount,
        return_quantile_levels=manifest.uncertainty.return_quantile_levels,
        cvar_level=manifest.uncertainty.cvar_level,
        gradient_norm_levels=manifest.uncertainty.gradient_norm_levels,
        sample_count=manifest.uncertainty.sample_count,
        return_threshold=manifest.uncertainty.return_threshold,
        observation_gradient=manifest.uncertainty.observation_gradient,
        calibrated=manifest.calibration is not None,
        calibration=calibration_reply(manifest.calibration),
        execution_provider=policy.runtime.provider,
    )


def calibration_reply(calibration: Calibration | None) -> CalibrationReply | None:
    """What held-out episodes say of a policy's law."""
    if calibration is None:
        return None
    return CalibrationReply(
        false_alarm_rate=calibration.false_alarm_rate,
        critic_disagreement_threshold=calibration.critic_disagreement_threshold,
        data_distance_threshold=calibration.data_distance_threshold,
        interval_levels=calibration.levels,
        raw_coverage=calibration.raw.coverage,
        corrected_coverage=calibration.corrected.coverage,
        test_episodes=calibration.test_episodes,
    )


def numbers(observation: object, policy: ServedPolicy) -> list[float]:
    """The observation of a body in contract order.

    Raises:
        InvalidInputError: neither list nor object, a channel missing or unknown, or an element that is no finite
            number; names the channel.
    """
    names = policy.manifest.observation_names
    if isinstance(observation, Mapping):
        return policy.ordered_observation({key: _number(value, repr(key)) for key, value in observation.items()})
    if not isinstance(observation, list):
        raise InvalidInputError(
            f"observation must be a list of {len(names)} numbers or an object from channel name to number, "
            f"got {type(observation).__name__}"
        )
    labels = [*(f"{name!r} at index {index}" for index, name in enumerate(names)), *([""] * len(observation))]
    return [
        _number(value, label or f"index {index}")
        for index, (value, label) in enumerate(zip(observation, labels, strict=False))
    ]


def _number(value: object, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInputError(f"observation must hold numbers, got {_shown(value)} for {place[:80]}; send a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidInputError(f"observation must be finite, got {number} for {place[:80]}; send a finite number")
    return number


def _shown(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:32]!r}" if isinstance(value, str | bool) else type(value).__name__


def act_reply(policy: ServedPolicy, decision: Decision) -> ActReply:
    """The reply that carries a decision."""
    summary, samples = decision.summary, decision.samples
    return ActReply(
        policy=policy.manifest.name,
        policy_version=policy.manifest.version,
        action=decision.action.tolist(),
        summary=None
        if summary is None
        else SummaryReply(
            return_mean=summary.return_mean,
            return_std=summary.return_std,
            return_quantiles_raw=summary.return_quantiles_raw.tolist(),
            return_quantiles_corrected=_listed(summary.return_quantiles_corrected),
            return_cvar=summary.return_cvar,
            return_below_threshold=summary.return_below_threshold,
            gradient_mean=summary.gradient_mean.tolist(),
            gradient_std=summary.gradient_std.tolist(),
            gradient_norm_quantiles=summary.gradient_norm_quantiles.tolist(),
            gradient_sign_agreement=summary.gradient_sign_agreement.tolist(),
            gradient_resultant_length=summary.gradient_resultant_length,
            critic_disagreement=summary.critic_disagreement,
            data_distance=summary.data_distance,
            observation_gradient_mean=_listed(summary.observation_gradient_mean),
        ),
        samples=None
        if samples is None
        else SamplesReply(returns=samples.returns.tolist(), action_gradients=samples.action_gradients.tolist()),
        queue_ms=decision.queue_ns / 1e6,
        inference_ms=decision.inference_ns / 1e6,
    )


def _listed(vector: FloatArray | None) -> list[float] | None:
    return None if vector is None else vector.tolist()
