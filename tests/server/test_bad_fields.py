"""Every field of every native request wrong in turn: the documented code, and a message that names the field and the remedy."""

import json

import grpc
import pytest

from protos import policy_pb2 as pb
from server.http_messages import ActBody, AssessBody, SelectionBody
from tests.server.running import PATIENCE_S, SECOND, Robot

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
OTHER_CONTRACT = grpc.StatusCode.FAILED_PRECONDITION
GOOD = [0.1, 0.2, 0.3]
NAN, INF = float("nan"), float("inf")
LONG = "x" * 100_000
LONGEST_MESSAGE = 2000

NAME = [("walker", NOT_FOUND, "no policy is named 'walker'; loaded: 'reacher'"), (LONG, NOT_FOUND, "loaded: 'reacher'")]
CONTRACT = [
    ("0" * 64, OTHER_CONTRACT, "contract must be"),
    (LONG, OTHER_CONTRACT, "compare names, units, limits, order and control period with what Describe states"),
]
VECTOR = [
    ([], INVALID, "observation must have shape (3,), got (0,); the policy expects 'position' at index 0"),
    ([0.0, 0.0], INVALID, "the policy expects 'temperature' at index 2"),
    ([0.0] * 4, INVALID, "the policy expects 'position', 'velocity', 'temperature'"),
    ([0.0] * 100_000, INVALID, "got (100000,)"),
    ([0.0, NAN, 0.0], INVALID, "observation must be finite, got nan for 'velocity' at index 1; send a finite"),
    ([INF, 0.0, 0.0], INVALID, "got inf for 'position' at index 0; send a finite"),
    ([0.0, 0.0, -INF], INVALID, "got -inf for 'temperature' at index 2; send a finite"),
]
DETAIL = [(9, INVALID, "detail must be one of DETAIL_UNSPECIFIED"), (-1, INVALID, "got -1")]
RATES = [(value, INVALID, "rate_hz must lie in 0.01..10000") for value in (NAN, INF, -INF, -1.0, 1e-9, 1e300)]
LATENCIES = [(value, INVALID, "latency_ms must lie in 0.01..60000") for value in (NAN, INF, -INF, -1.0, 1e-9, 1e300)]
WRONG = {
    "DescribeRequest": {"policy": NAME},
    "ActRequest": {"policy": NAME, "contract": CONTRACT, "observation": VECTOR, "detail": DETAIL, "selection": None},
    "AssessRequest": {
        "policy": NAME,
        "contract": CONTRACT,
        "observation": VECTOR,
        "candidates": [
            ([], INVALID, "candidates must hold a multiple of 2 numbers"),
            ([0.1], INVALID, "got 1; send them row after row"),
            ([0.1, NAN], INVALID, "candidate 0 of row 0 has nan for 'elbow' at index 1"),
            ([0.1, 0.1, INF, 0.1], INVALID, "candidate 1 of row 0 has inf for 'shoulder' at index 0"),
            ([0.1, -0.5], INVALID, "outside [-0.4, 0.4] N m; send actions within the limits"),
            ([0.1] * 100_000, INVALID, "at most 256 rows, got 100000; send"),
        ],
        "detail": [*DETAIL, (pb.DETAIL_NONE, INVALID, "detail must be summary or samples")],
    },
    "OpenSession": {
        "policy": NAME,
        "robot": [(LONG, INVALID, "robot must be at most 64 printable"), ("a\nb", INVALID, "got 'a\\nb'")],
        "contract": CONTRACT,
        "detail": DETAIL,
        "selection": None,
        "rate_hz": RATES,
        "latency_ms": LATENCIES,
    },
    "Selection": {
        "rule": [(9, INVALID, "selection.rule must be one of RULE_UNSPECIFIED"), (-1, INVALID, "got -1")],
        "candidates": [(value, INVALID, "selection.candidates must lie in 2..256") for value in (1, 257, 2**32 - 1)],
        "spread": [
            (value, INVALID, "selection.spread must lie above 0 and not above 1")
            for value in (NAN, INF, -INF, -1, 1.01)
        ],
    },
    "Observation": {
        "tick": [(5, INVALID, "tick must be greater than 5, got 5"), (4, INVALID, "got 4")],
        "sent_ns": [(2**63 - 1, INVALID, "sent_ns + validity_ns must fit 64 bits; send nanoseconds of a monotonic")],
        "validity_ns": [(value, INVALID, "validity_ns must be positive, got") for value in (0, -1, -(2**63))]
        + [(2**63 - 1, INVALID, "must fit 64 bits")],
        "values": VECTOR,
        "status": None,
    },
    # Shown to the operator and checked by nobody: a robot is not stopped for what it says of itself.
    "RobotStatus": {
        "guard": [99, -1],
        "guard_reason": [LONG, "\x00\n\u202e", "\U0001f916"],
        "round_trip_ns": [-(2**63), 2**63 - 1],
        "late_ticks": [2**64 - 1, 0],
        "episode": [2**64 - 1],
        "episode_return": [NAN, INF, -INF, 1e308],
    },
}
"""Message to field to wrong values with the code and the message they get; None where the field is a message of its own."""


def test_every_field_of_every_request_is_tried():
    requests = {pb.DescribeRequest, pb.ActRequest, pb.AssessRequest, pb.OpenSession, pb.Observation}
    requests |= {pb.Selection, pb.RobotStatus}
    assert WRONG.keys() == {request.DESCRIPTOR.name for request in requests}
    for request in requests:
        assert WRONG[request.DESCRIPTOR.name].keys() == {field.name for field in request.DESCRIPTOR.fields}
    assert {field.name for field in pb.ControlRequest.DESCRIPTOR.fields} == {"open", "observation"}


def cases(message):
    return [
        pytest.param(field, *case, id=f"{field}-{index}")
        for field, wrong in WRONG[message].items()
        for index, case in enumerate(wrong or ())
    ]


def check_refusal(call, code, message):
    with pytest.raises(grpc.RpcError) as refusal:
        call()
    assert refusal.value.code() is code, refusal.value.details()
    assert message in refusal.value.details()
    assert len(refusal.value.details()) <= LONGEST_MESSAGE


@pytest.mark.parametrize(("field", "value", "code", "message"), cases("DescribeRequest"))
def test_wrong_description_requests(running, field, value, code, message):
    request = pb.DescribeRequest(**{field: value})
    check_refusal(lambda: running.stub.Describe(request, timeout=PATIENCE_S), code, message)


@pytest.mark.parametrize(("field", "value", "code", "message"), cases("ActRequest"))
def test_wrong_act_requests(running, field, value, code, message):
    request = pb.ActRequest(**{"observation": GOOD, field: value})
    check_refusal(lambda: running.stub.Act(request, timeout=PATIENCE_S), code, message)


@pytest.mark.parametrize(("field", "value", "code", "message"), cases("AssessRequest"))
def test_wrong_assess_requests(running, field, value, code, message):
    request = pb.AssessRequest(**{"observation": GOOD, "candidates": [0.1, 0.2], field: value})
    check_refusal(lambda: running.stub.Assess(request, timeout=PATIENCE_S), code, message)


@pytest.mark.parametrize(("field", "value", "code", "message"), cases("Selection"))
def test_wrong_selections(running, field, value, code, message):
    selection = pb.Selection(**{"rule": pb.RULE_BEST_MEAN, field: value})
    request = pb.ActRequest(observation=GOOD, selection=selection)
    check_refusal(lambda: running.stub.Act(request, timeout=PATIENCE_S), code, message)
    check_refusal(lambda: Robot(running.grpc, selection=selection), code, message)


@pytest.mark.parametrize(("field", "value", "code", "message"), cases("OpenSession"))
def test_wrong_openings(running, field, value, code, message):
    promise = {"rate_hz": 10.0} if field == "latency_ms" else {}
    check_refusal(lambda: Robot(running.grpc, **{**promise, field: value}), code, message)
    assert running.core.admission.share == 0


@pytest.mark.parametrize(("field", "value", "_code", "message"), cases("Observation"))
def test_wrong_observations_are_rejected_and_the_stream_goes_on(running, field, value, _code, message):
    with Robot(running.grpc) as robot:
        robot.observe(5)
        assert robot.answer().status == pb.DECISION_STATUS_OK
        good = {"tick": 6, "sent_ns": 1, "validity_ns": 10 * SECOND, "values": GOOD}
        robot.send(pb.ControlRequest(observation=pb.Observation(**{**good, field: value})))
        answer = robot.answer()
        assert answer.status == pb.DECISION_STATUS_REJECTED
        assert message in answer.error
        assert len(answer.error) <= LONGEST_MESSAGE
        robot.observe(7)
        assert robot.answer().status == pb.DECISION_STATUS_OK


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in WRONG["RobotStatus"].items() for value in values]
)
def test_whatever_a_robot_says_of_itself_it_is_answered_and_the_page_can_read_it(running, field, value):
    with Robot(running.grpc, robot="odd") as robot:
        for tick in (1, 2):
            robot.observe(tick, status=pb.RobotStatus(**{field: value}))
            assert robot.answer().status == pb.DECISION_STATUS_OK
        with running.client.stream("GET", "/v1/live") as events:
            for line in events.iter_lines():
                if not line.startswith("data: "):
                    continue
                shown = json.loads(line.removeprefix("data: "), parse_constant=pytest.fail)
                (odd,) = (one for one in shown["robots"] if one["session"] == robot.opened.session)
                assert len(odd["guard_reason"]) <= 200
                if odd["ticks"] == 2:  # the answer may come before the page knows of it
                    break
        assert odd["ticks"] == 2
        assert running.client.get("/metrics").status_code == 200


JSON_VECTOR = [
    None,
    True,
    1,
    "0.1, 0.2, 0.3",
    [],
    [0.1],
    [0.1] * 9,
    [0.1, None, 0.3],
    {"position": 1},
    {"x": 1},
    [NAN] * 3,
]
WRONG_JSON = {
    ActBody: {
        "observation": JSON_VECTOR,
        "detail": [None, 1, "all", ""],
        "selection": [1, "actor", [], {"rule": "luck"}],
        "timeout_ms": [0, -1, NAN, INF, 1e300, "soon", []],
    },
    AssessBody: {
        "observation": JSON_VECTOR,
        "candidates": [None, {}, [], [[]], [0.1], [[0.1]], [[0.1, "a"]], [[0.1, NAN]], [[9, 0]], [[0.1, 0.1]] * 257],
        "detail": [None, "none", "all"],
        "timeout_ms": [0, -1, NAN, "soon"],
    },
    SelectionBody: {
        "rule": [None, 1, "", "luck"],
        "candidates": [None, -1, 1, 257, 1.5, "many", 10**400],
        "spread": [None, -1, 0, 1.01, NAN, INF, "wide", True],
    },
}
JSON_CASES = [
    pytest.param(body, field, value, id=f"{body.__name__}-{field}-{index}")
    for body, fields in WRONG_JSON.items()
    for field, values in fields.items()
    for index, value in enumerate(values)
]


def test_every_field_of_every_body_is_tried():
    for body, fields in WRONG_JSON.items():
        assert fields.keys() == body.model_fields.keys()


@pytest.mark.parametrize(("body", "field", "value"), JSON_CASES)
def test_wrong_bodies(running, body, field, value):
    content = {"observation": GOOD, field: value}
    if body is SelectionBody:
        content = {"observation": GOOD, "selection": {"rule": "best-mean", field: value}}
    path = "act"
    if body is AssessBody:
        path, content = "assess", {"candidates": [[0.1, 0.2]], **content}
    reply = running.client.post(
        f"/v1/policies/reacher/{path}", content=json.dumps(content), headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 422
    error = reply.json()["error"]
    assert field.removesuffix("s") in error  # "candidate 3 ..." names one of the candidates
    assert len(error) <= LONGEST_MESSAGE
