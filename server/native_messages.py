"""Between the messages of policy.proto and what the core takes and gives."""

import numpy as np

from protos import policy_pb2 as pb
from protos.codec import channels_to_proto, samples_to_proto, summary_to_proto
from server.decision_template import DecisionTemplate
from server.errors import InvalidInputError
from server.manifest import Calibration
from server.question import Answered
from server.runtime import Detail
from server.selection import ACTOR, Rule, Selected, Selection
from server.served_policy import MAX_ROWS, Decision, ServedPolicy, samples_of, summary_of

DETAILS: dict[pb.Detail.ValueType, Detail] = {
    pb.DETAIL_UNSPECIFIED: Detail.SUMMARY,
    pb.DETAIL_NONE: Detail.NONE,
    pb.DETAIL_SUMMARY: Detail.SUMMARY,
    pb.DETAIL_SAMPLES: Detail.SAMPLES,
}
RULES: dict[pb.Rule.ValueType, Rule] = {
    pb.RULE_UNSPECIFIED: Rule.ACTOR,
    pb.RULE_ACTOR: Rule.ACTOR,
    pb.RULE_BEST_MEAN: Rule.BEST_MEAN,
    pb.RULE_BEST_CVAR: Rule.BEST_CVAR,
}
TO_RULE = {Rule.ACTOR: pb.RULE_ACTOR, Rule.BEST_MEAN: pb.RULE_BEST_MEAN, Rule.BEST_CVAR: pb.RULE_BEST_CVAR}


def detail_of(message: pb.Detail.ValueType) -> Detail:
    """Raises InvalidInputError on a value that the protocol does not have."""
    if message not in DETAILS:
        raise InvalidInputError(f"detail must be one of {', '.join(pb.Detail.keys())}, got {message}")
    return DETAILS[message]


def selection_of(message: pb.Selection, policy: ServedPolicy) -> Selection:
    """How the action is to be picked; zeros stand for the defaults.

    Raises:
        InvalidInputError: a value that means nothing, or an action without limits to spread candidates over.
    """
    if message.rule not in RULES:
        raise InvalidInputError(f"selection.rule must be one of {', '.join(pb.Rule.keys())}, got {message.rule}")
    selection = Selection(
        rule=RULES[message.rule],
        candidates=message.candidates or ACTOR.candidates,
        spread=message.spread or ACTOR.spread,
    )
    policy.check_selection(selection)
    return selection


def candidates_of(message: pb.AssessRequest, policy: ServedPolicy) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """The candidate actions, (C, A).

    Raises:
        InvalidInputError: their numbers are not a multiple of the action's size, or too many.
    """
    size, count = len(policy.action), len(message.candidates)
    if not count or count % size or count > MAX_ROWS * size:
        raise InvalidInputError(
            f"candidates must hold a multiple of {size} numbers, one row per action, for at most {MAX_ROWS} rows, got {count}; "
            "send them row after row, and more in another request"
        )
    return np.array(message.candidates, np.float32).reshape(-1, size)


def write_decision(decision: Decision, template: DecisionTemplate, message: pb.Decision) -> None:
    """Fills in an empty message.

    Args:
        decision: of the template's layout.
        template: of the policy at the detail that was asked.
        message: to be filled in.
    """
    message.ParseFromString(template.serialised(decision.row))
    if decision.selected is not None:
        message.selected.CopyFrom(_selected(decision.selected))


def _selected(selected: Selected) -> pb.Selected:
    rule = TO_RULE[selected.rule]
    return pb.Selected(rule=rule, candidates=selected.candidates, index=selected.index, gain=selected.gain)


def assessments_to_proto(answered: Answered, detail: Detail) -> list[pb.Assessment]:
    """One message per candidate of a single observation."""
    count = len(answered.outputs["return_mean"][0])
    rows = [{name: value[0, index] for name, value in answered.outputs.items()} for index in range(count)]
    return [
        pb.Assessment(
            summary=summary_to_proto(summary_of(row)),
            samples=samples_to_proto(samples_of(row)) if detail is Detail.SAMPLES else None,
        )
        for row in rows
    ]


def description(policy: ServedPolicy) -> pb.DescribeResponse:
    """What a robot must know of a policy before it moves."""
    manifest = policy.manifest
    return pb.DescribeResponse(
        policy=manifest.name,
        policy_version=manifest.version,
        environment=manifest.task.environment,
        perturbations=manifest.task.perturbations,
        observation=channels_to_proto(policy.observation),
        action=channels_to_proto(policy.action),
        contract=policy.fingerprint,
        control_period_s=manifest.control_period_s,
        discount=manifest.uncertainty.discount,
        return_quantile_levels=manifest.uncertainty.return_quantile_levels,
        cvar_level=manifest.uncertainty.cvar_level,
        gradient_norm_levels=manifest.uncertainty.gradient_norm_levels,
        sample_count=manifest.uncertainty.sample_count,
        observed_low=manifest.observed_range.low,
        observed_high=manifest.observed_range.high,
        execution_provider=policy.runtime.provider,
        calibrated=manifest.calibration is not None,
        return_threshold=manifest.uncertainty.return_threshold,
        observation_gradient=manifest.uncertainty.observation_gradient,
        calibration=None if manifest.calibration is None else _calibration(manifest.calibration),
    )


def _calibration(calibration: Calibration) -> pb.Calibration:
    return pb.Calibration(
        false_alarm_rate=calibration.false_alarm_rate,
        critic_disagreement_threshold=calibration.critic_disagreement_threshold,
        data_distance_threshold=calibration.data_distance_threshold,
        interval_levels=calibration.levels,
        raw_coverage=calibration.raw.coverage,
        corrected_coverage=calibration.corrected.coverage,
        test_episodes=calibration.test_episodes,
    )
