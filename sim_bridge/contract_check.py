"""Does the policy mean by its numbers what the robot means by them? Asked before anything moves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from protos import policy_pb2 as pb
from protos.codec import ChannelLike
from sim_bridge.errors import TaskError
from sim_bridge.tasks import TaskContract
from sim_bridge.tasks.perturbations import parse_perturbation

RELATIVE_TOLERANCE = 1e-6  # float32 limits written down as decimals


@dataclass(frozen=True, kw_only=True)
class ContractDifference:
    """One thing that robot and policy disagree about."""

    what: str
    """What it is, with the index of a channel."""
    robot: str
    """What the robot says."""
    policy: str
    """What the policy says."""


def contract_differences(robot: TaskContract, policy: pb.DescribeResponse) -> list[ContractDifference]:
    """Every difference in sizes, names, order, units, limits and control period; empty where they agree."""
    differences = [
        *_vector_differences("observation", robot.observation, policy.observation),
        *_vector_differences("action", robot.action, policy.action),
    ]
    if not math.isclose(robot.control_period_s, policy.control_period_s, rel_tol=RELATIVE_TOLERANCE):
        differences.append(
            ContractDifference(
                what="control period", robot=f"{robot.control_period_s:g} s", policy=f"{policy.control_period_s:g} s"
            )
        )
    return differences


def same_perturbations(robot: Sequence[str], policy: Sequence[str]) -> bool:
    """Whether both name the same perturbations at the same scales, in any order and spelling (`mass=0.10`, `mass=0.1`)."""
    return sorted(map(_perturbation_text, robot)) == sorted(map(_perturbation_text, policy))


def _perturbation_text(text: str) -> str:
    try:
        perturbation = parse_perturbation(text)
    except TaskError:
        return text  # of a policy whose task has perturbations that this robot does not know
    return f"{perturbation.name}={perturbation.scale}"


def _vector_differences(
    vector: str, robot: Sequence[ChannelLike], policy: Sequence[ChannelLike]
) -> list[ContractDifference]:
    differences = []
    if len(robot) != len(policy):
        differences.append(ContractDifference(what=f"{vector} size", robot=str(len(robot)), policy=str(len(policy))))
    for index in range(max(len(robot), len(policy))):
        here = robot[index] if index < len(robot) else None
        there = policy[index] if index < len(policy) else None
        if here is None or there is None or not _same_channel(here, there):
            differences.append(
                ContractDifference(what=f"{vector}[{index}]", robot=_channel_text(here), policy=_channel_text(there))
            )
    return differences


def _same_channel(one: ChannelLike, other: ChannelLike) -> bool:
    return (
        (one.name, one.unit) == (other.name, other.unit)
        and math.isclose(one.low, other.low, rel_tol=RELATIVE_TOLERANCE)
        and math.isclose(one.high, other.high, rel_tol=RELATIVE_TOLERANCE)
    )


def _channel_text(channel: ChannelLike | None) -> str:
    if channel is None:
        return "(none)"
    return f"{channel.name} [{channel.unit}] {channel.low:.7g} to {channel.high:.7g}"
