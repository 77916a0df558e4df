import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from protos import policy_pb2 as pb
from protos.codec import contract_fingerprint, summary_from_proto
from server import core as core_module
from server.bundle import load_bundle
from server.core import Core, ServedPolicy
from server.runtime import Detail, Runtime
from tests.server import small_bundle
from tests.server.running import PATIENCE_S, Robot, Running, decided

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
    monkeypatch.setattr(core_module, "QUEUE_LIMIT", 1)
    with Running(Core([ServedPolicy(gated, inline_below_s=0.0)])) as running:
        gated.armed = True
        first = running.stub.Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
        gated.wait_until_entered()
        with pytest.raises(grpc.RpcError) as refusal:
            act(running)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        hint = dict(refusal.value.trailing_metadata())["retry-after-ms"]
        assert int(hint) >= 1
        reply = running.client.post("/v1/policies/reacher/act", json={"observation": OBSERVATION})
        assert reply.status_code == 503
        assert int(reply.headers["retry-after"]) >= 1
        gated.permitted.release()
        first.result()


def test_drain_finishes_what_has_begun_and_refuses_the_rest(gated):
    running = Running(Core([ServedPolicy(gated, inline_below_s=0.0)]))
    with running, Robot(running.grpc) as robot:
        watch = health_pb2_grpc.HealthStub(running.channel).Watch(
            health_pb2.HealthCheckRequest(service="reacher"), timeout=PATIENCE_S
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        gated.armed = True
        in_flight = running.stub.Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
        gated.wait_until_entered()
        robot.observe(1)
        running.begin_stop()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
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
