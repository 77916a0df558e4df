import asyncio
import dataclasses

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import open_inference_pb2 as oip
from protos import policy_pb2 as pb
from protos.codec import contract_fingerprint, summary_from_proto
from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server import waiting_line
from server.admission import WIRE_S
from server.bundle import load_bundle
from server.core import Core
from server.runtime import Detail, Runtime
from server.served_policy import ServedPolicy
from tests.server import small_bundle
from tests.server.running import PATIENCE_S, Robot, Running, decided, eventually

OBSERVATION = [0.1, 0.2, 0.3]


def act(running, **fields):
    return running.stub.Act(pb.ActRequest(**{"observation": OBSERVATION, **fields}), timeout=PATIENCE_S)


def refused(call):
    with pytest.raises(grpc.RpcError) as refusal:
        call()
    return refusal.value.code(), refusal.value.details()


def test_describe_states_the_whole_contract(running, loaded):
    described = running.stub.Describe(pb.DescribeRequest(), timeout=PATIENCE_S)
    assert described.policy == "reacher"
    assert list(described.perturbations) == ["action_noise=0.1"]
    assert described.policy_version == loaded.manifest.version
    assert [channel.name for channel in described.observation] == list(small_bundle.OBSERVATION)
    assert [channel.unit for channel in described.observation] == ["m", "m/s", "°C"]
    assert (described.observation[0].low, described.observation[0].high) == (-2.5, np.inf)
    assert [channel.high for channel in described.action] == list(small_bundle.HIGH)
    assert described.control_period_s == 0.01
    assert list(described.return_quantile_levels) == list(small_bundle.LEVELS)
    assert described.sample_count == small_bundle.N
    assert described.execution_provider == "CPUExecutionProvider"
    assert described.return_threshold == small_bundle.THRESHOLD
    assert described.calibrated
    assert described.observation_gradient
    assert list(described.calibration.interval_levels) == [0.5, 0.8]
    assert list(described.calibration.raw_coverage) == [0.31, 0.62]
    assert list(described.calibration.corrected_coverage) == [0.49, 0.81]
    assert described.calibration.false_alarm_rate == 0.01
    assert described.calibration.critic_disagreement_threshold == 5.0
    assert described.calibration.data_distance_threshold == 4.0
    assert described.calibration.test_episodes == 30
    assert described.contract == contract_fingerprint(described.observation, described.action, 0.01)


def test_act_gives_what_the_policy_gives(running, loaded):
    response = act(running, policy="reacher", detail=pb.DETAIL_SAMPLES)
    runtime = Runtime(loaded, "cpu")
    values = runtime.infer(np.float32([OBSERVATION]), Detail.SAMPLES)
    outputs = {name: value[0] for name, value in zip(runtime.outputs[Detail.SAMPLES], values, strict=True)}
    described = running.stub.Describe(pb.DescribeRequest(), timeout=PATIENCE_S)
    assert list(response.decision.action) == outputs.pop("action").tolist()
    assert list(response.decision.samples.returns) == outputs.pop("return_samples").tolist()
    assert list(response.decision.samples.action_gradients) == outputs.pop("gradient_samples").ravel().tolist()
    summary = summary_from_proto(response.decision.summary, described)
    for name, value in outputs.items():
        np.testing.assert_array_equal(getattr(summary, name), value, err_msg=name)
    assert response.policy_version == loaded.manifest.version
    assert response.inference_ns > 0


def test_uncalibrated_policy_is_described_and_answers_as_such(uncalibrated):
    with Running.of(load_bundle(uncalibrated)) as running:
        described = running.stub.Describe(pb.DescribeRequest(), timeout=PATIENCE_S)
        assert not described.calibrated
        assert not described.observation_gradient
        assert not described.HasField("calibration")
        summary = summary_from_proto(act(running).decision.summary, described)
        assert summary.return_quantiles_corrected is None
        reply = running.client.get("/v1/policies/reacher").json()
        assert (reply["calibrated"], reply["calibration"]) == (False, None)
        posted = running.client.post("/v1/policies/reacher/act", json={"observation": OBSERVATION}).json()["summary"]
        assert posted["return_quantiles_corrected"] is None
        assert posted["observation_gradient_mean"] is None
        assert len(posted["return_quantiles_raw"]) == len(small_bundle.LEVELS)


def test_act_carries_only_the_detail_asked_for(running):
    assert not act(running, detail=pb.DETAIL_NONE).decision.HasField("summary")
    default = act(running).decision
    assert default.HasField("summary")
    assert not default.HasField("samples")


@pytest.mark.parametrize(
    ("fields", "code", "message"),
    [
        ({"observation": [0.0, 1.0]}, grpc.StatusCode.INVALID_ARGUMENT, "expects 'temperature' at index 2"),
        ({"observation": [0.0, 1.0, np.nan]}, grpc.StatusCode.INVALID_ARGUMENT, "nan for 'temperature' at index 2"),
        ({"observation": [np.inf, 1.0, 0.0]}, grpc.StatusCode.INVALID_ARGUMENT, "inf for 'position' at index 0"),
        ({"policy": "walker"}, grpc.StatusCode.NOT_FOUND, "no policy is named 'walker'"),
        ({"contract": "f" * 64}, grpc.StatusCode.FAILED_PRECONDITION, "contract must be"),
        ({"detail": 9}, grpc.StatusCode.INVALID_ARGUMENT, "detail must be one of"),
    ],
)
def test_bad_request_gets_its_status_and_a_reason(running, fields, code, message):
    got, details = refused(lambda: act(running, **fields))
    assert got is code
    assert message in details
    assert "Traceback" not in details


def test_message_over_the_cap_is_refused_and_the_server_goes_on(running):
    code, _ = refused(lambda: act(running, observation=[0.0] * 300_000))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert len(act(running).decision.action) == 2


def test_bytes_that_are_no_message_are_refused_and_the_server_goes_on(running):
    raw = running.channel.unary_unary("/dst.policy.v1.PolicyService/Act")
    code, details = refused(lambda: raw(b"\xff" * 40, timeout=PATIENCE_S))
    assert code is grpc.StatusCode.UNKNOWN  # gRPC's own answer, before any code of this server
    assert "Traceback" not in details
    assert len(act(running).decision.action) == 2


def test_policy_must_be_named_where_several_are_loaded(loaded):
    other = type(loaded)(
        path=loaded.path,
        manifest=loaded.manifest.model_copy(update={"name": "walker"}),
        files=loaded.files,
        golden=loaded.golden,
    )
    core = Core([ServedPolicy(Runtime(bundle, "cpu")) for bundle in (loaded, other)])
    with Running(core) as running:
        code, details = refused(lambda: act(running))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "'reacher', 'walker'" in details
        assert act(running, policy="walker").policy == "walker"


def health(running, service=""):
    stub = health_pb2_grpc.HealthStub(running.channel)
    return stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE_S).status


def test_health_is_serving_overall_and_per_policy(running):
    assert health(running) == health_pb2.HealthCheckResponse.SERVING
    assert health(running, "reacher") == health_pb2.HealthCheckResponse.SERVING
    assert refused(lambda: health(running, "walker"))[0] is grpc.StatusCode.NOT_FOUND


def watch_health(channel, service):
    request = health_pb2.HealthCheckRequest(service=service)
    return health_pb2_grpc.HealthStub(channel).Watch(request, timeout=PATIENCE_S)


def test_who_watches_health_is_told_of_changes_whoever_else_watches_or_leaves(loaded):
    served = health_pb2.HealthCheckResponse
    with Running.of(loaded) as running:
        stays, leaves, lost = (watch_health(running.channel, name) for name in ("reacher", "reacher", "walker"))
        assert next(stays).status == next(leaves).status == served.SERVING
        assert next(lost).status == served.SERVICE_UNKNOWN
        tasks = len(asyncio.all_tasks(running._loop))
        leaves.cancel()
        eventually(lambda: len(asyncio.all_tasks(running._loop)) < tasks, "the server knows that one has left")
        running.call(running.core.remove("reacher"))
        assert next(stays).status == served.NOT_SERVING
        running.call(running.core.add(ServedPolicy(Runtime(loaded, "cpu"))))
        assert next(stays).status == served.SERVING


def test_server_is_ready_on_every_wire_while_it_has_a_policy(loaded, bundle, tmp_path):
    other = load_bundle(small_bundle.uncalibrated(bundle, tmp_path / "walker", name="walker"))
    core = Core([ServedPolicy(Runtime(policy, "cpu")) for policy in (loaded, other)])
    with Running(core) as running:
        open_inference = GRPCInferenceServiceStub(running.channel)

        def ready():
            (native,) = {running.client.get(path).status_code == 200 for path in ("/readyz", "/v2/health/ready")}
            assert open_inference.ServerReady(oip.ServerReadyRequest(), timeout=PATIENCE_S).ready == native
            assert (health(running) == health_pb2.HealthCheckResponse.SERVING) == native
            return native

        assert ready()
        running.call(core.remove("walker"))
        assert ready()
        running.call(core.remove("reacher"))
        assert not ready()
        assert running.client.get("/readyz").json() == {"error": "no policy is loaded; load one"}
        running.call(core.add(ServedPolicy(Runtime(other, "cpu"))))
        assert ready()


def test_health_answers_while_an_expensive_policy_computes(gated):
    with Running(Core([ServedPolicy(gated, inline_below_s=0.0)])) as running:
        gated.armed = True
        decision = running.stub.Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
        gated.wait_until_entered()
        assert health(running) == health_pb2.HealthCheckResponse.SERVING
        assert running.client.get("/healthz").status_code == 200
        assert not decision.done()
        gated.permitted.release()
        assert list(decision.result().decision.action) == decided(Runtime(gated._bundle, "cpu"), OBSERVATION)


def test_services_are_listed_by_reflection(running):
    stub = reflection_pb2_grpc.ServerReflectionStub(running.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    reply = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE_S)))
    names = {service.name for service in reply.list_services_response.service}
    assert {"dst.policy.v1.PolicyService", "grpc.health.v1.Health"} <= names


def test_overload_carries_a_retry_hint(gated, monkeypatch):
    monkeypatch.setattr(waiting_line, "WAITING_LIMIT", 1)
    with Running(Core([ServedPolicy(gated, inline_below_s=0.0)])) as running:
        gated.armed = True
        first = running.stub.Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
        gated.wait_until_entered()
        second = running.stub.Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
        eventually(lambda: running.metric("dst_queue_depth", policy="reacher") == 1, "a second observation waits")
        with pytest.raises(grpc.RpcError) as refusal:
            act(running)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hint = dict(refusal.value.trailing_metadata())["retry-after-ms"]
        assert int(hint) >= 1
        reply = running.client.post("/v1/policies/reacher/act", json={"observation": OBSERVATION})
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        assert running.metric("dst_sheds_total", policy="reacher", reason="queue") == 2
        gated.permitted.release(2)
        first.result()
        second.result()


def test_drain_finishes_what_has_begun_and_refuses_the_rest(gated):
    running = Running(Core([ServedPolicy(gated, inline_below_s=0.0)]))
    with running, Robot(running.grpc) as robot:
        watch = watch_health(running.channel, "reacher")
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        gated.armed = True
        in_flight = running.stub.Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
        gated.wait_until_entered()
        robot.observe(1)
        running.begin_stop()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert refused(lambda: next(watch)) == (grpc.StatusCode.UNAVAILABLE, "server is shutting down")
        code, details = refused(lambda: act(running))
        assert (code, details) == (grpc.StatusCode.UNAVAILABLE, "server is shutting down")
        gated.permitted.release(2)
        assert len(in_flight.result().decision.action) == 2
        answers = []
        with pytest.raises(grpc.RpcError) as end:
            answers.extend(answer.decision.status for answer in robot.responses)
        assert set(answers) <= {pb.DECISION_STATUS_OK}
        assert end.value.code() is grpc.StatusCode.UNAVAILABLE
        assert end.value.details() == "server is shutting down"


def test_assess_gives_the_law_of_every_candidate(running, loaded):
    candidates = [[0.1, 0.2], [-0.3, 0.0], [0.5, -0.4]]
    flat = [value for row in candidates for value in row]
    request = pb.AssessRequest(observation=OBSERVATION, candidates=flat, detail=pb.DETAIL_SAMPLES)
    response = running.stub.Assess(request, timeout=PATIENCE_S)
    laws = Runtime(loaded, "cpu").assess(np.float32([OBSERVATION]), np.float32([candidates]))
    described = running.stub.Describe(pb.DescribeRequest(), timeout=PATIENCE_S)
    assert len(response.assessments) == len(candidates)
    for index, assessment in enumerate(response.assessments):
        for name, value in dataclasses.asdict(summary_from_proto(assessment.summary, described)).items():
            np.testing.assert_array_equal(value, laws[name][0, index], err_msg=name)
        assert list(assessment.samples.returns) == laws["return_samples"][0, index].tolist()
    assert running.metric("dst_decisions_total", method="assess", status="ok") >= 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": [0.1, 0.2, 0.3]}, "candidates must hold a multiple of 2 numbers"),
        ({"candidates": []}, "candidates must hold a multiple of 2 numbers"),
        ({"candidates": [9.0, 0.0]}, "candidate 0 of row 0 has 9.0"),
        ({"candidates": [np.nan, 0.0]}, "candidate 0 of row 0 has nan"),
        ({"candidates": [0.0] * 2 * 257}, "at most 256"),
        ({"detail": pb.DETAIL_NONE}, "detail must be summary or samples"),
        ({"observation": [0.0]}, "observation must have shape"),
    ],
)
def test_assess_names_what_does_not_fit(running, fields, message):
    request = pb.AssessRequest(**{"observation": OBSERVATION, "candidates": [0.1, 0.2], **fields})
    code, details = refused(lambda: running.stub.Assess(request, timeout=PATIENCE_S))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in details


def test_a_session_may_pick_the_best_of_candidates(running):
    selection = pb.Selection(rule=pb.RULE_BEST_CVAR, candidates=64, spread=0.5)
    picked = act(running, selection=selection).decision
    actor = act(running).decision
    assert not actor.HasField("selected")
    assert (picked.selected.rule, picked.selected.candidates) == (pb.RULE_BEST_CVAR, 64)
    assert picked.summary.return_cvar == pytest.approx(actor.summary.return_cvar + picked.selected.gain, abs=1e-5)
    with Robot(running.grpc, selection=selection) as robot:
        robot.observe(1, OBSERVATION)
        assert robot.answer().decision.selected == picked.selected


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (pb.Selection(rule=9), "selection.rule must be one of"),
        (pb.Selection(rule=pb.RULE_BEST_MEAN, candidates=1), "selection.candidates must lie in 2..256"),
        (pb.Selection(rule=pb.RULE_BEST_MEAN, spread=-1), "selection.spread must lie above 0"),
    ],
)
def test_a_selection_that_means_nothing_is_refused(running, selection, message):
    code, details = refused(lambda: act(running, selection=selection))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert message in details


def test_a_promise_is_told_and_given_back_when_the_session_ends(loaded):
    with Running.of(loaded) as running:
        with Robot(running.grpc, rate_hz=100.0, latency_ms=50.0) as robot:
            assert (robot.opened.granted_rate_hz, robot.opened.granted_latency_ms) == (100.0, 50.0)
            robot.observe(1)
            assert robot.answer().status == pb.DECISION_STATUS_OK
            code, details = refused(lambda: Robot(running.grpc, rate_hz=9000.0, latency_ms=50.0))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "9000 Hz cannot be promised" in details
            eventually(lambda: running.core.admission.share > 0, "a share is promised")
        eventually(lambda: running.core.admission.share == 0, "the promise is given back")
        assert running.metric("dst_promises_total", policy="reacher", outcome="refused") == 1


def test_the_load_that_is_granted_is_shown_by_policy_for_as_long_as_sessions_last(loaded, bundle, tmp_path):
    other = load_bundle(small_bundle.uncalibrated(bundle, tmp_path / "walker", name="walker"))
    core = Core([ServedPolicy(Runtime(policy, "cpu")) for policy in (loaded, other)])
    with Running(core) as running:

        def shows(**rates_hz):
            return all(
                running.metric("dst_granted_load", policy=name)
                == pytest.approx(rate_hz * (core.policies[name].cost_s() + WIRE_S))
                for name, rate_hz in rates_hz.items()
            )

        promise = {"latency_ms": 500.0}
        with Robot(running.grpc, policy="walker", rate_hz=30.0, **promise), Robot(running.grpc, policy="walker"):
            with Robot(running.grpc, policy="reacher", rate_hz=50.0, **promise):
                with Robot(running.grpc, policy="reacher", rate_hz=10.0, **promise):
                    assert shows(reacher=60.0, walker=30.0)
                eventually(lambda: shows(reacher=50.0, walker=30.0), "one promise was taken back")
            eventually(lambda: shows(reacher=0.0, walker=30.0), "the other policy's stay")
        eventually(lambda: shows(reacher=0.0, walker=0.0), "all promises were taken back")


@pytest.mark.parametrize(("field", "value"), [("rate_hz", -5.0), ("rate_hz", np.nan), ("latency_ms", 5.0)])
def test_an_impossible_promise_is_refused(running, field, value):
    code, details = refused(lambda: Robot(running.grpc, **{field: value}))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "rate_hz must lie in" in details


def test_sessions_of_an_unloaded_policy_end_and_health_says_so(loaded):
    with Running.of(loaded) as running, Robot(running.grpc) as robot:
        robot.observe(1)
        assert robot.answer().status == pb.DECISION_STATUS_OK
        running.call(running.core.remove("reacher"))
        robot.observe(2)
        code, details = refused(robot.answer)
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "was unloaded" in details
        eventually(lambda: health(running, "reacher") == health_pb2.HealthCheckResponse.NOT_SERVING, "health says so")
        assert refused(lambda: act(running))[0] is grpc.StatusCode.FAILED_PRECONDITION
        running.call(running.core.add(ServedPolicy(Runtime(loaded, "cpu"))))
        assert len(act(running).decision.action) == 2
        eventually(lambda: health(running, "reacher") == health_pb2.HealthCheckResponse.SERVING, "health says so")
