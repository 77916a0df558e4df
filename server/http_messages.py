"""The JSON of the HTTP interface: bodies, replies, and the checks of an observation."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, FailFast, Field, WithJsonSchema

from protos.codec import FloatArray, Samples, Summary
from server.errors import InvalidInputError
from server.manifest import Calibration
from server.question import Answered
from server.request_body import RequestBody
from server.runtime import Detail
from server.selection import ACTOR, MOST_CANDIDATES, Rule, Selection
from server.served_policy import MAX_ROWS, Decision, ServedPolicy, samples_of, summary_of


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


ObservationBody = Annotated[
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
DetailBody = Annotated[Detail, Field(description="How much uncertainty the reply carries.")]
Timeout = Annotated[
    float | None, Field(gt=0, le=3.6e6, description="After this time the observation is not computed any more.")
]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class SelectionBody(RequestBody):
    """How the action is picked from candidates around the actor's, which is the first of them."""

    rule: Annotated[Rule, Field(description="Highest mean return, highest CVaR, or the actor's action.")]
    candidates: Annotated[int, Field(ge=2, le=MOST_CANDIDATES)] = ACTOR.candidates
    spread: Annotated[Number, Field(gt=0, le=1, description="Standard deviation, in half action ranges.")] = (
        ACTOR.spread
    )

    def chosen(self, policy: ServedPolicy) -> Selection:
        """The same for the core.

        Raises:
            InvalidInputError: the action has no limits to spread candidates over.
        """
        selection = Selection(rule=self.rule, candidates=self.candidates, spread=self.spread)
        policy.check_selection(selection)
        return selection


class ActBody(RequestBody):
    """One observation."""

    observation: ObservationBody
    detail: DetailBody = Detail.SUMMARY
    selection: Annotated[SelectionBody | None, Field(description="Null: the actor's action.")] = None
    timeout_ms: Timeout = None


class AssessBody(RequestBody):
    """One observation and the actions to assess."""

    observation: ObservationBody
    candidates: Annotated[
        list[Annotated[list[Number], Field(max_length=4096), FailFast()]],
        FailFast(),
        Field(min_length=1, max_length=MAX_ROWS, description="Actions in contract order, within the limits."),
    ]
    detail: Annotated[Detail, Field(description="`summary` or `samples`.")] = Detail.SUMMARY
    timeout_ms: Timeout = None


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


class SelectedReply(BaseModel):
    """What was picked."""

    rule: Rule
    candidates: int
    index: Annotated[int, Field(description="0 is the actor's action.")]
    gain: Annotated[float, Field(description="Expected over the actor's action, by that rule, in units of the return.")]


class ActReply(BaseModel):
    """One decision; what was not asked for is null."""

    policy: str
    policy_version: str
    action: list[float]
    summary: SummaryReply | None
    samples: SamplesReply | None
    selected: SelectedReply | None
    queue_ms: float
    inference_ms: float


class AssessmentReply(BaseModel):
    """The law of one candidate."""

    summary: SummaryReply
    samples: SamplesReply | None


class AssessReply(BaseModel):
    """One assessment per candidate, in the order sent."""

    policy: str
    policy_version: str
    assessments: list[AssessmentReply]
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
        ordered = policy.ordered_observation(observation)
        return [_number(value, repr(name)) for name, value in zip(names, ordered, strict=True)]
    if not isinstance(observation, list):
        raise InvalidInputError(
            f"observation must be a list of {len(names)} numbers or an object from channel name to number, "
            f"got {type(observation).__name__}"
        )
    policy.check_not_longer(len(observation))
    return [
        _number(value, f"{name!r} at index {index}")
        for index, (value, name) in enumerate(zip(observation, names, strict=False))
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


def candidate_rows(candidates: list[list[float]], policy: ServedPolicy) -> FloatArray:
    """The candidate actions of a body, (C, A).

    Raises:
        InvalidInputError: one has another size than the action.
    """
    size = len(policy.action)
    for index, candidate in enumerate(candidates):
        if len(candidate) != size:
            raise InvalidInputError(f"candidate {index} must have {size} numbers, got {len(candidate)}")
    with np.errstate(over="ignore"):  # what does not fit is infinite, and refused as outside the limits
        return np.array(candidates, np.float64).astype(np.float32)


def act_reply(policy: ServedPolicy, decision: Decision) -> ActReply:
    """The reply that carries a decision."""
    summary, samples, selected = decision.summary, decision.samples, decision.selected
    return ActReply(
        policy=policy.manifest.name,
        policy_version=policy.manifest.version,
        action=decision.action.tolist(),
        summary=None if summary is None else _summary_reply(summary),
        samples=None if samples is None else _samples_reply(samples),
        selected=None if selected is None else SelectedReply(**dataclasses.asdict(selected)),
        queue_ms=decision.queue_ns / 1e6,
        inference_ms=decision.inference_ns / 1e6,
    )


def assess_reply(policy: ServedPolicy, answered: Answered, detail: Detail) -> AssessReply:
    """The reply that carries the laws of one observation's candidates."""
    count = len(answered.outputs["return_mean"][0])
    rows = [{name: value[0, index] for name, value in answered.outputs.items()} for index in range(count)]
    return AssessReply(
        policy=policy.manifest.name,
        policy_version=policy.manifest.version,
        assessments=[
            AssessmentReply(
                summary=_summary_reply(summary_of(row)),
                samples=_samples_reply(samples_of(row)) if detail is Detail.SAMPLES else None,
            )
            for row in rows
        ],
        queue_ms=answered.queue_ns / 1e6,
        inference_ms=answered.inference_ns / 1e6,
    )


def _summary_reply(summary: Summary) -> SummaryReply:
    return SummaryReply(
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
    )


def _samples_reply(samples: Samples) -> SamplesReply:
    return SamplesReply(returns=samples.returns.tolist(), action_gradients=samples.action_gradients.tolist())


def _listed(vector: FloatArray | None) -> list[float] | None:
    return None if vector is None else vector.tolist()
