import contextlib
import json
import socket
import threading

import httpx
import numpy as np
import pytest

from protos import policy_pb2 as pb
from server import http_protocol
from server.core import Core
from server.http_server import MAX_CONNECTIONS
from server.runtime import Detail, Runtime
from server.served_policy import ServedPolicy
from tests.server import small_bundle
from tests.server.running import Running, decided

OBSERVATION = [0.1, 0.2, 0.3]
NAMED = dict(zip(small_bundle.OBSERVATION, OBSERVATION, strict=True))


def act(running, content, **options):
    """Posts JSON that may hold what `json.dumps` of a proper client would not."""
    body = content if isinstance(content, bytes) else json.dumps({"observation": content, **options})
    return running.client.post("/v1/policies/reacher/act", content=body, headers={"Content-Type": "application/json"})


def test_act_gives_what_the_policy_gives(running, loaded):
    reply = act(running, OBSERVATION, detail="samples").json()
    runtime = Runtime(loaded, "cpu")
    values = runtime.infer(np.float32([OBSERVATION]), Detail.SAMPLES)
    outputs = {name: value[0].tolist() for name, value in zip(runtime.outputs[Detail.SAMPLES], values, strict=True)}
    assert reply["action"] == outputs.pop("action")
    assert reply["samples"]["returns"] == outputs.pop("return_samples")
    assert reply["samples"]["action_gradients"] == outputs.pop("gradient_samples")
    assert reply["summary"] == outputs
    assert reply["policy_version"] == loaded.manifest.version
    assert reply["inference_ms"] > 0


def test_named_observation_needs_no_order(running):
    expected = act(running, OBSERVATION).json()["action"]
    for names in (list(NAMED), list(NAMED)[::-1]):
        assert act(running, {name: NAMED[name] for name in names}).json()["action"] == expected


def test_reply_carries_only_the_detail_asked_for(running):
    assert act(running, OBSERVATION, detail="none").json()["summary"] is None
    default = act(running, OBSERVATION).json()
    assert default["summary"] is not None
    assert default["samples"] is None


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ([0.1, 0.2], "shape (3,), got (2,); the policy expects 'temperature' at index 2"),
        ([0.1, 0.2, 0.3, 0.4], "shape (3,), got (4,)"),
        ([0.1, float("nan"), 0.3], "'velocity' at index 1"),
        ([float("inf"), 0.2, 0.3], "'position' at index 0"),
        ([0.1, 0.2, 1e39], "'temperature' at index 2"),
        ([0.1, 0.2, 10**400], "'temperature' at index 2"),
        ([0.1, "0.2", 0.3], "got str '0.2' for 'velocity' at index 1"),
        ([0.1, True, 0.3], "got bool 'True' for 'velocity' at index 1"),
        ([0.1, None, 0.3], "got NoneType for 'velocity' at index 1"),
        ([[0.1, 0.2, 0.3]], "got list for 'position' at index 0"),
        ({"position": 0.1, "velocity": 0.2}, "missing 'temperature'"),
        ({**NAMED, "pressure": 1.0}, "unknown channels 'pressure'"),
        ({**NAMED, "velocity": float("nan")}, "'velocity'"),
        ({**NAMED, "velocity": "fast"}, "got str 'fast' for 'velocity'"),
        (0.1, "must be a list of 3 numbers or an object"),
        (None, "must be a list of 3 numbers or an object"),
    ],
)
def test_bad_observation_is_refused_by_name(running, observation, message):
    reply = act(running, observation)
    assert reply.status_code == 422
    assert message in reply.json()["error"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 422, "body"),
        (b"{", 422, "JSON"),
        (b"\xff", 400, ""),
        (b"[" * 100_000, 400, ""),
        (b'{"observation": [0, 0, 0], "detail": "all"}', 422, "body.detail"),
        (b'{"observation": [0, 0, 0], "timeout_ms": 0}', 422, "body.timeout_ms"),
        (b'{"observation": [0, 0, 0], "surprise": 1}', 422, "body.surprise"),
        (b"{}", 422, "body.observation"),
        (b'{"observation": "0, 0, 0"}', 422, "must be a list of 3 numbers or an object"),
    ],
)
def test_bad_body_is_refused_readably(running, body, status, message):
    reply = act(running, body)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    assert message in reply.json()["error"]
    assert "Traceback" not in reply.text


def test_unknown_policy_and_path_get_the_same_form_of_error(running):
    reply = running.client.post("/v1/policies/walker/act", json={"observation": OBSERVATION})
    assert reply.status_code == 404
    assert "no policy is named 'walker'; loaded: 'reacher'" in reply.json()["error"]
    assert running.client.get("/v1/policies/walker").status_code == 404
    assert set(running.client.get("/nowhere").json()) == {"error"}
    assert running.client.get("/v1/policies/reacher/act").status_code == 405


def test_body_over_the_cap_is_refused_before_it_is_complete(running):
    host, port = running.http.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            b"POST /v1/policies/reacher/act HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
        for _ in range(17):  # one chunk over 1 MiB, and the end never comes
            connection.sendall(chunk)
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")
    assert act(running, OBSERVATION).status_code == 200


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize("beginning", [b"", REQUEST[:-2]])
def test_connections_that_do_not_say_what_they_want_give_their_places_back(loaded, monkeypatch, beginning):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.3)
    with Running.of(loaded) as running, contextlib.ExitStack() as stack:
        host, port = running.http.removeprefix("http://").split(":")
        connections = [
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(MAX_CONNECTIONS)
        ]
        for connection in connections:
            connection.sendall(beginning)
        for connection in connections:
            assert connection.recv(1) == b""
        assert running.client.get("/healthz").status_code == 200


def test_a_connection_that_asks_once_and_then_begins_for_ever_is_closed(loaded, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.3)
    with Running.of(loaded) as running:
        host, port = running.http.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            connection.sendall(REQUEST)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            connection.sendall(REQUEST[:-2])
            while connection.recv(4096):
                pass


def test_an_answer_may_take_longer_than_a_question(loaded, monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.05)
    with Running.of(loaded) as running, running.client.stream("GET", "/v1/live") as events:
        texts = events.iter_text()
        for _ in range(3):  # a tenth of a second apart
            assert next(texts).startswith("data: ")


def test_timeout_that_passed_while_waiting_is_answered_504(gated):
    with Running(Core([ServedPolicy(gated, inline_below_s=0.0)])) as running:
        gated.armed = True
        first = running.stub.Act.future(act_request(), timeout=20)
        gated.wait_until_entered()
        with httpx.Client(base_url=running.http, timeout=20) as client:
            client.headers["Content-Type"] = "application/json"
            # Permission comes after more than the timeout: at the earliest when this request has been received.
            timer = threading.Timer(0.2, gated.permitted.release)
            timer.start()
            body = {"observation": OBSERVATION, "timeout_ms": 1}
            reply = client.post("/v1/policies/reacher/act", content=json.dumps(body))
            timer.join()
        assert reply.status_code == 504
        assert "expired" in reply.json()["error"]
        first.result()


def act_request():
    return pb.ActRequest(observation=OBSERVATION)


def test_policy_is_described(running, loaded):
    (listed,) = running.client.get("/v1/policies").json()
    assert listed == running.client.get("/v1/policies/reacher").json()
    assert listed["observation"][0] == {"name": "position", "unit": "m", "low": -2.5, "high": None}
    assert listed["version"] == loaded.manifest.version
    assert listed["control_period_s"] == 0.01
    assert listed["perturbations"] == ["action_noise=0.1"]


def test_healthy_and_ready(running):
    assert running.client.get("/healthz").status_code == 200
    assert running.client.get("/readyz").status_code == 200


def test_not_ready_once_it_stops_accepting(loaded):
    core = Core([ServedPolicy(Runtime(loaded, "cpu"))])
    with Running(core) as running:
        core.stop_accepting()
        assert running.client.get("/healthz").status_code == 200
        reply = running.client.get("/readyz")
        assert (reply.status_code, reply.json()) == (503, {"error": "server is shutting down"})
        assert act(running, OBSERVATION).status_code == 503


def test_metrics_count_decisions_by_method_and_status(loaded):
    with Running.of(loaded) as running:
        act(running, OBSERVATION)
        act(running, OBSERVATION)
        act(running, [1.0])
        running.stub.Act(act_request(), timeout=20)
        assert running.metric("dst_decisions_total", method="http", status="ok") == 2
        assert running.metric("dst_decisions_total", method="http", status="rejected") == 1
        assert running.metric("dst_decisions_total", method="act", status="ok") == 1
        for stage in ("queue", "inference", "total"):
            assert running.metric("dst_stage_latency_seconds_count", method="http", stage=stage) == 2
        total = running.metric("dst_stage_latency_seconds_sum", method="http", stage="total")
        assert total >= running.metric("dst_stage_latency_seconds_sum", method="http", stage="inference") > 0


def test_openapi_documents_act_and_its_errors(running):
    document = running.client.get("/openapi.json").json()
    operation = document["paths"]["/v1/policies/{name}/act"]["post"]
    assert {"200", "400", "404", "413", "422", "500", "503", "504"} == set(operation["responses"])
    schemas = document["components"]["schemas"]
    for status, response in operation["responses"].items():
        schema = response["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
        assert schema == ("ActReply" if status == "200" else "ErrorReply")
    body = schemas["ActBody"]["properties"]
    assert [kind["type"] for kind in body["observation"]["anyOf"]] == ["array", "object"]
    assert schemas["Detail"]["enum"] == ["none", "summary", "samples"]
    assert set(schemas["SummaryReply"]["properties"]) == set(act(running, OBSERVATION).json()["summary"])


def test_page_is_served_and_nothing_beside_it(running):
    page = running.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert running.client.get("/static/index.html").text == page.text
    assert running.client.get("/static/%2e%2e/%2e%2e/app.py").status_code == 404
    assert "access-control-allow-origin" not in page.headers
    reply = running.client.get("/healthz", headers={"Origin": "http://elsewhere.example"})
    assert "access-control-allow-origin" not in reply.headers


def test_decision_over_http_equals_that_over_grpc(running, loaded):
    over_grpc = running.stub.Act(act_request(), timeout=20)
    assert act(running, OBSERVATION).json()["action"] == list(over_grpc.decision.action)
    assert list(over_grpc.decision.action) == decided(Runtime(loaded, "cpu"), OBSERVATION)


def test_assess_gives_the_law_of_every_candidate(running, loaded):
    candidates = [[0.1, 0.2], [-0.3, 0.0]]
    body = {"observation": OBSERVATION, "candidates": candidates, "detail": "samples"}
    reply = running.client.post("/v1/policies/reacher/assess", json=body)
    assert reply.status_code == 200
    laws = Runtime(loaded, "cpu").assess(np.float32([OBSERVATION]), np.float32([candidates]))
    for index, assessment in enumerate(reply.json()["assessments"]):
        assert set(assessment["summary"]) | set(assessment["samples"]) | {"return_samples", "gradient_samples"} >= set(
            laws
        )
        for name, value in assessment["summary"].items():
            np.testing.assert_array_equal(np.float32(value), laws[name][0, index], err_msg=name)
        np.testing.assert_array_equal(np.float32(assessment["samples"]["returns"]), laws["return_samples"][0, index])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": [[0.1]]}, "candidate 0 must have 2 numbers"),
        ({"candidates": [[0.1, 1e300]]}, "candidate 0 of row 0 has inf"),
        ({"candidates": [["0.1", 0.2]]}, "candidates.0.0"),
        ({"candidates": []}, "body.candidates"),
        ({"detail": "none"}, "detail must be summary or samples"),
        ({"observation": [1]}, "observation must have shape"),
    ],
)
def test_assess_names_what_does_not_fit(running, fields, message):
    body = {"observation": OBSERVATION, "candidates": [[0.1, 0.2]], **fields}
    reply = running.client.post("/v1/policies/reacher/assess", json=body)
    assert reply.status_code == 422
    assert message in reply.json()["error"]


def test_act_may_pick_the_best_of_candidates(running):
    body = {"observation": OBSERVATION, "selection": {"rule": "best-mean", "candidates": 32, "spread": 0.5}}
    picked = running.client.post("/v1/policies/reacher/act", json=body).json()
    actor = running.client.post("/v1/policies/reacher/act", json={"observation": OBSERVATION}).json()
    assert actor["selected"] is None
    assert picked["selected"]["candidates"] == 32
    gain = picked["summary"]["return_mean"] - actor["summary"]["return_mean"]
    assert picked["selected"]["gain"] == pytest.approx(gain, abs=1e-5)
    reply = running.client.post("/v1/policies/reacher/act", json={**body, "selection": {"rule": "luck"}})
    assert reply.status_code == 422
