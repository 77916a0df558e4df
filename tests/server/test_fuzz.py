"""Whatever bytes arrive on any method or route, the answer is a documented one and the next good request is served."""

import json
import logging

import grpc
import numpy as np
import pytest
from google.protobuf import message as protobuf
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos import open_inference_pb2 as oip
from protos import policy_pb2 as pb
from server import http_api, request_body
from server.oip import http_bodies
from tests.server.running import PATIENCE_S, SECOND, eventually

GOOD = [0.1, 0.2, 0.3]
SERVICES = [
    service
    for module in (pb, oip, health_pb2, reflection_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
DOCUMENTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
NO_USABLE_OUTPUT = "the policy gave a"
LONGEST_MESSAGE = 2000
"""Characters: all of a refusal has to fit into a header."""

OPEN = pb.ControlRequest(open=pb.OpenSession(policy="reacher", robot="arm", rate_hz=10.0, latency_ms=1000.0))
OBSERVED = pb.ControlRequest(
    observation=pb.Observation(
        tick=1,
        sent_ns=5,
        validity_ns=10 * SECOND,
        values=GOOD,
        status=pb.RobotStatus(guard=pb.GUARD_STATE_HOLD, guard_reason="late", late_ticks=3, episode_return=1.5),
    )
)
SELECTION = pb.Selection(rule=pb.RULE_BEST_CVAR, candidates=8, spread=0.2)
INFER = oip.ModelInferRequest(
    model_name="reacher",
    id="7",
    inputs=[oip.ModelInferRequest.InferInputTensor(name="observation", datatype="FP32", shape=[1, 3])],
    outputs=[oip.ModelInferRequest.InferRequestedOutputTensor(name="action")],
    raw_input_contents=[np.float32(GOOD).tobytes()],
)
VALID = {
    "Describe": [pb.DescribeRequest(policy="reacher")],
    "Act": [pb.ActRequest(policy="reacher", observation=GOOD, detail=pb.DETAIL_SAMPLES, selection=SELECTION)],
    "Assess": [pb.AssessRequest(policy="reacher", observation=GOOD, candidates=[0.1, 0.2, 0.3, -0.1])],
    "Control": [OPEN, OBSERVED],
    "ModelInfer": [INFER],
    "ModelStreamInfer": [INFER, INFER],
    # What is unloaded here would be missing in the next test.
    "RepositoryModelLoad": [oip.RepositoryModelLoadRequest(model_name="walker")],
    "RepositoryModelUnload": [oip.RepositoryModelUnloadRequest(model_name="walker")],
    "Check": [health_pb2.HealthCheckRequest(service="reacher")],
    "Watch": [health_pb2.HealthCheckRequest(service="reacher")],
}
"""By method; the others take the name of a model, or nothing."""
EFFORTS = pytest.mark.parametrize("effort", [25, pytest.param(1000, marks=pytest.mark.slow)])


def examples(effort):
    """As many, the same each time; where it takes longer anyway, always others."""
    quick = effort < 100
    return settings(max_examples=effort, derandomize=quick, deadline=None, suppress_health_check=list(HealthCheck))


class Errors(logging.Handler):
    """What is logged as an error, but for messages that gRPC could not decode and outputs that were of no use."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.found = []

    def emit(self, record):
        text = logging.Formatter().format(record)
        if "DecodeError" not in text and NO_USABLE_OUTPUT not in text:
            self.found.append(text)


@pytest.fixture(autouse=True)
def no_errors(running):
    """Nothing went wrong inside the server, nothing is left behind, and a good request is answered."""
    errors = Errors()
    logging.getLogger().addHandler(errors)
    yield
    logging.getLogger().removeHandler(errors)
    assert errors.found == []
    assert len(running.stub.Act(pb.ActRequest(observation=GOOD), timeout=PATIENCE_S).decision.action) == 2
    eventually(lambda: running.metric("dst_control_sessions", policy="reacher") == 0, "all sessions ended")
    assert running.core.admission.share == 0


def valid(method):
    """A serialised good request of a method, or several of a stream."""
    messages = VALID.get(method.name)
    if messages is None:
        of_model = {"name": "reacher"} if "name" in method.input_type.fields_by_name else {}
        messages = [GetMessageClass(method.input_type)(**of_model)]
    return [message.SerializeToString() for message in messages]


def outcome(running, path, method, payloads):
    """Code and details of a call with these bytes; its replies are readable."""
    reply = GetMessageClass(method.output_type)
    if method.client_streaming:
        call = running.channel.stream_stream(path)(iter(payloads), timeout=PATIENCE_S)
    elif method.server_streaming:
        call = running.channel.unary_stream(path)(payloads[0], timeout=PATIENCE_S)
    else:
        call = running.channel.unary_unary(path).future(payloads[0], timeout=PATIENCE_S)
    try:
        if method.server_streaming:
            for received in call:
                reply.FromString(received)
                if not method.client_streaming:
                    call.cancel()
                    return grpc.StatusCode.OK, ""
        else:
            reply.FromString(call.result())
    except grpc.RpcError:
        assert call.code() is not grpc.StatusCode.OK
    return call.code(), call.details()


def readable(method, payloads):
    kind = GetMessageClass(method.input_type)
    try:
        for payload in payloads:
            kind.FromString(payload)
    except protobuf.DecodeError:
        return False
    return True


def check(running, path, method, payloads):
    code, details = outcome(running, path, method, payloads)
    assert "Traceback" not in details
    assert len(details) <= LONGEST_MESSAGE
    if code in DOCUMENTED:
        return
    if code is grpc.StatusCode.INTERNAL:
        assert details.startswith(NO_USABLE_OUTPUT)
    else:
        # gRPC's own answer to what is no message, before any code of this server.
        assert code is grpc.StatusCode.UNKNOWN, details
        assert not readable(method, payloads), details


def test_the_methods_tried_are_all_there_are(running):
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE_S)
    listed = {service.name for service in reply.list_services_response.service}
    assert listed == {service.full_name for service in SERVICES}


@pytest.mark.parametrize("path", METHODS)
def test_good_requests_are_what_is_mutated(running, path):
    method = METHODS[path]
    code, details = outcome(running, path, method, valid(method))
    assert code is (grpc.StatusCode.NOT_FOUND if "walker" in details else grpc.StatusCode.OK), details


@pytest.mark.parametrize("path", METHODS)
@EFFORTS
def test_any_bytes_get_a_documented_answer(running, path, effort):
    method = METHODS[path]

    @examples(effort)
    @given(payloads=st.lists(st.binary(max_size=200), min_size=1, max_size=4))
    def answered(payloads):
        check(running, path, method, payloads)

    answered()


@st.composite
def spoiled(draw, payload):
    """The bytes with a few of them changed, left out, put in or repeated."""
    data = bytearray(payload)
    for kind in draw(
        st.lists(st.sampled_from(("cut", "change", "insert", "remove", "repeat")), min_size=1, max_size=3)
    ):
        place = draw(st.integers(0, len(data)))
        if kind == "cut":
            del data[place:]
        elif kind == "change" and place < len(data):
            data[place] = draw(st.integers(0, 255))
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=9))
        elif kind == "remove":
            del data[place : place + draw(st.integers(1, 9))]
        else:
            data += data[place:]
    return bytes(data)


@pytest.mark.parametrize("path", [path for path, method in METHODS.items() if any(valid(method))])
@EFFORTS
def test_spoiled_requests_get_a_documented_answer(running, path, effort):
    method = METHODS[path]

    @examples(effort)
    @given(data=st.data())
    def answered(data):
        payloads = valid(method)
        last = data.draw(spoiled(payloads[-1]))
        check(running, path, method, [*payloads[:-1], last, *payloads])

    answered()


def odd(field):
    """Values of a field that are of its type but of no use, or only just."""
    if field.message_type is not None:
        return messages(field.message_type)
    if field.enum_type is not None:
        return st.integers(-(2**31), 2**31 - 1) | st.sampled_from([value.number for value in field.enum_type.values])
    kinds = {
        "float": st.floats(width=32) | st.sampled_from(GOOD),
        "double": st.floats() | st.sampled_from([0.0, 1.0, 1e-300, 100.0]),
        "int": st.sampled_from([0, 1, 2, 255, 256, 257, 2**31 - 1]),
        "str": st.text(max_size=80) | st.sampled_from(["", "reacher", "observation", "action", "FP32", "x" * 70_000]),
        "bool": st.booleans(),
        "bytes": st.binary(max_size=16) | st.just(np.float32(GOOD).tobytes()),
    }
    if field.cpp_type in (field.CPPTYPE_INT64, field.CPPTYPE_UINT64):
        kinds["int"] |= st.sampled_from([2**62, 2**63 - 1])
    names = {field.CPPTYPE_FLOAT: "float", field.CPPTYPE_DOUBLE: "double", field.CPPTYPE_BOOL: "bool"}
    names[field.CPPTYPE_STRING] = "bytes" if field.type == field.TYPE_BYTES else "str"
    return kinds[names.get(field.cpp_type, "int")]


@st.composite
def messages(draw, descriptor):
    """A message with any of its fields, each of its own type."""
    message = GetMessageClass(descriptor)()
    for field in draw(st.lists(st.sampled_from(list(descriptor.fields)), unique_by=lambda field: field.name)):
        values = odd(field)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for entry in draw(st.lists(values, max_size=2)):
                message.MergeFrom(GetMessageClass(descriptor)(**{field.name: {entry.key: entry.value}}))
        elif field.is_repeated:
            getattr(message, field.name).extend(draw(st.lists(values, max_size=4) | st.lists(values, max_size=300)))
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(values))
        else:
            setattr(message, field.name, draw(values))
    return message


MUTATED = [path for path, method in METHODS.items() if method.input_type.fields and "reflection" not in path]


@pytest.mark.parametrize("path", MUTATED)
@EFFORTS
def test_messages_with_odd_values_get_a_documented_answer(running, path, effort):
    method = METHODS[path]

    @examples(effort)
    @given(message=messages(method.input_type))
    def answered(message):
        if getattr(message, "model_name", "") == "reacher" and "Repository" in path:
            return
        good = valid(method)
        kind = GetMessageClass(method.input_type)
        merged = kind.FromString(good[-1])
        for field, value in message.ListFields():
            merged.ClearField(field.name)
            merged.MergeFrom(kind(**{field.name: value}))
        check(running, path, method, [*good[:-1], message.SerializeToString()])
        check(running, path, method, [*good[:-1], merged.SerializeToString(), *good[-1:]])

    answered()


ACT = {
    "observation": GOOD,
    "detail": "samples",
    "selection": {"rule": "best-cvar", "candidates": 8, "spread": 0.2},
    "timeout_ms": 10_000,
}
ASSESS = {"observation": GOOD, "candidates": [[0.1, 0.2], [0.3, -0.1]], "detail": "summary", "timeout_ms": 10_000}
INFER_BODY = {
    "id": "7",
    "inputs": [{"name": "observation", "datatype": "FP32", "shape": [1, 3], "data": GOOD}],
    "outputs": [{"name": "action"}],
    "parameters": {"timeout": 1_000_000},
}
ROUTES = {
    "/v1/policies/reacher/act": ("/v1/policies/{name}/act", ACT),
    "/v1/policies/reacher/assess": ("/v1/policies/{name}/assess", ASSESS),
    "/v2/models/reacher/infer": ("/v2/models/{model}/infer", INFER_BODY),
    "/v2/repository/index": ("/v2/repository/index", {"ready": True}),
    "/v2/repository/models/walker/load": ("/v2/repository/models/{model}/load", {"parameters": {}}),
    "/v2/repository/models/walker/unload": ("/v2/repository/models/{model}/unload", {"parameters": {}}),
}
"""Paths, as described, with good bodies."""


@pytest.fixture(scope="module")
def described(running):
    """What the interface says of its paths."""
    return running.client.get("/openapi.json").json()["paths"]


def posted(running, described, path, content, **headers):
    """The reply to a body, checked to be one that the interface describes."""
    reply = running.client.post(path, content=content, headers={"Content-Type": "application/json", **headers})
    assert str(reply.status_code) in described[ROUTES[path][0]]["post"]["responses"], reply.text
    if reply.status_code != 200:
        assert set(reply.json()) == {"error"}
        assert "Traceback" not in reply.text
        assert len(reply.text) <= LONGEST_MESSAGE
    if reply.status_code == 500:
        assert reply.json()["error"].startswith(NO_USABLE_OUTPUT)
    return reply


def test_the_routes_tried_are_all_that_take_a_body(described):
    taking = {path for path, operations in described.items() if "post" in operations and "/versions/" not in path}
    assert taking == {route for route, _ in ROUTES.values()}


def as_json(value):
    """Text that may hold what a proper client would not send."""
    return json.dumps(value).encode()


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 2**63, 10**400])
    | st.floats()
    | st.text(st.characters(), max_size=20)
    | st.sampled_from(["\ud800", "x" * 70_000, "reacher", "action"])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(st.characters()), inner, max_size=3)
)


def places(value, path=()):
    """Paths to everything inside a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def replaced(value, path, new):
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = replaced(value[path[0]], path[1:], new)
    return copy


@pytest.mark.parametrize("path", ROUTES)
@EFFORTS
def test_any_body_gets_a_described_answer(running, described, path, effort):
    @examples(effort)
    @given(
        body=st.binary(max_size=200) | VALUES.map(as_json) | spoiled(as_json(ROUTES[path][1])),
        kind=st.sampled_from(["application/json", "text/plain", "application/octet-stream", ""]),
    )
    def answered(body, kind):
        posted(running, described, path, body, **{"Content-Type": kind})

    answered()


@pytest.mark.parametrize("path", ROUTES)
@EFFORTS
def test_any_value_anywhere_in_a_body_gets_a_described_answer(running, described, path, effort):
    good = ROUTES[path][1]

    @examples(effort)
    @given(data=st.data())
    def answered(data):
        place = data.draw(st.sampled_from(list(places(good))))
        body = replaced(good, place, data.draw(VALUES))
        if isinstance(body, dict) and data.draw(st.booleans()):
            body[data.draw(st.text(st.characters()) | st.sampled_from(["\ud800" * 9, "x" * 70_000]))] = data.draw(
                SCALARS
            )
        posted(running, described, path, as_json(body))

    answered()


@EFFORTS
def test_any_binary_tensor_gets_a_described_answer(running, described, effort):
    header = as_json(
        {
            "inputs": [
                {"name": "observation", "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 12}}
            ]
        }
    )

    @examples(effort)
    @given(
        body=spoiled(header + np.float32(GOOD).tobytes()),
        length=st.sampled_from([str(len(header)), "0", "-1", "9" * 30, "x", ""]),
        encoding=st.sampled_from([{}, *({"Content-Encoding": name} for name in ("gzip", "deflate", "br"))]),
    )
    def answered(body, length, encoding):
        posted(
            running,
            described,
            "/v2/models/reacher/infer",
            body,
            **{"Inference-Header-Content-Length": length, **encoding},
        )

    answered()


MANY = {f"k{number}": [] for number in range(50_000)}
LONG_WRONG = [
    (path, body)
    for path, bodies in {
        "/v1/policies/reacher/act": [{**ACT, **MANY}, {**ACT, "observation": MANY}, {**ACT, "selection": MANY}],
        "/v1/policies/reacher/assess": [
            {**ASSESS, "candidates": [["a"] * 1000] * 200},
            {**ASSESS, "observation": [[]] * 90_000},
        ],
        "/v2/models/reacher/infer": [
            {"inputs": [{}] * 90_000},
            {**INFER_BODY, "outputs": [{}] * 90_000},
            {**INFER_BODY, "parameters": MANY},
            {"inputs": [{**INFER_BODY["inputs"][0], **MANY}]},
            {"inputs": [{**INFER_BODY["inputs"][0], "shape": ["a"] * 90_000}]},
        ],
        "/v2/repository/models/walker/unload": [{"parameters": MANY}],
    }.items()
    for body in bodies
]


@pytest.mark.parametrize(("path", "body"), LONG_WRONG, ids=range(len(LONG_WRONG)))
def test_a_large_body_that_is_wrong_in_many_places_is_not_searched_for_all_of_them(
    running, described, path, body, monkeypatch
):
    """Telling everything that is wrong with a body of the largest size took seconds, in which no robot was answered."""
    found = []
    original = request_body.told
    for user in (http_api, http_bodies):
        monkeypatch.setattr(user, "told", lambda problems: found.append(len(problems)) or original(problems))
    assert posted(running, described, path, as_json(body)).status_code == 422
    assert max(found, default=0) <= 16
