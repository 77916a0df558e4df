import dataclasses

import pytest

from protos import policy_pb2 as pb
from protos.codec import channels_to_proto
from sim_bridge.contract_check import ContractDifference, contract_differences
from sim_bridge.tasks import describe_task, make_task

ROBOT = describe_task(make_task("InvertedPendulum-v5"))


def policy_of(**changes):
    contract = dataclasses.replace(ROBOT, **changes)
    return pb.DescribeResponse(
        observation=channels_to_proto(contract.observation),
        action=channels_to_proto(contract.action),
        control_period_s=contract.control_period_s,
    )


def changed(index, **changes):
    channels = list(ROBOT.observation)
    channels[index] = dataclasses.replace(channels[index], **changes)
    return {"observation": tuple(channels)}


def test_the_same_contract_has_no_difference():
    assert contract_differences(ROBOT, policy_of()) == []


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        (changed(1, name="pole"), ["observation[1]"]),
        (changed(3, unit="deg/s"), ["observation[3]"]),
        (changed(2, high=5.0), ["observation[2]"]),
        (
            {"observation": (ROBOT.observation[1], ROBOT.observation[0], *ROBOT.observation[2:])},
            ["observation[0]", "observation[1]"],
        ),
        ({"observation": ROBOT.observation[:3]}, ["observation size", "observation[3]"]),
        ({"observation": (*ROBOT.observation, ROBOT.observation[0])}, ["observation size", "observation[4]"]),
        ({"action": (dataclasses.replace(ROBOT.action[0], low=-2.0),)}, ["action[0]"]),
        ({"control_period_s": 0.02}, ["control period"]),
    ],
)
def test_any_change_of_name_order_size_unit_limit_or_period_is_found(changes, what):
    assert [difference.what for difference in contract_differences(ROBOT, policy_of(**changes))] == what


def test_difference_says_what_both_sides_mean():
    difference = contract_differences(ROBOT, policy_of(action=(dataclasses.replace(ROBOT.action[0], low=-2.0),)))
    assert difference == [
        ContractDifference(what="action[0]", robot="slide [100 N] -3 to 3", policy="slide [100 N] -2 to 3")
    ]


def test_empty_description_differs_in_everything():
    what = [difference.what for difference in contract_differences(ROBOT, pb.DescribeResponse())]
    assert what == [
        "observation size",
        *(f"observation[{index}]" for index in range(4)),
        "action size",
        "action[0]",
        "control period",
    ]
