"""The protocol over gRPC, spoken by the real tritonclient."""

import asyncio
import queue
from importlib.metadata import version

import grpc
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from protos.open_inference_pb2_grpc import GRPCInferenceServiceStub
from server.core import Core
from server.oip.grpc_service import STREAM_IN_FLIGHT
from server.served_policy import ServedPolicy
from tests.server import small_bundle
from tests.server.oip.conftest import native_decision, same_as_native
from tests.server.oip.triton import inputs, outputs
from tests.server.running import PATIENCE_S, Running, eventually

TRITON = tritonclient.grpc


def refusal(call):
    with pytest.raises(InferenceServerException) as refused:
        call()
    return refused.value.status(), refused.value.message()


def infer_raw(running, request):
    """Sends a message that tritonclient would not make."""
    with grpc.insecure_channel(running.grpc) as channel:
        return service_pb2_stub(channel).ModelInfer(request, timeout=PATIENCE_S)


def service_pb2_stub(channel):
    from tritonclient.grpc import service_pb2_grpc

    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


def message(rows, **fields):
    request = service_pb2.ModelInferRequest(model_name="reacher", raw_input_contents=[rows.tobytes()])
    request.inputs.add(name="observation", datatype="FP32", shape=rows.shape)
    request.MergeFrom(service_pb2.ModelInferRequest(**fields))
    return request


def test_server_is_live_and_ready_and_says_what_it_is(grpc_client):
    assert grpc_client.is_server_live()
    assert grpc_client.is_server_ready()
    described = grpc_client.get_server_metadata()
    assert (described.name, described.version) == ("dst-policy-server", version("dst-policy-server"))
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(described.extensions)


def test_model_is_ready_by_name_and_by_the_hash_of_its_bundle_only(grpc_client, loaded):
    assert grpc_client.is_model_ready("reacher")
    assert grpc_client.is_model_ready("reacher", loaded.manifest.version)
    assert not grpc_client.is_model_ready("reacher", "1")
    assert not grpc_client.is_model_ready("walker")


def test_metadata_and_config_state_the_tensors(grpc_client, loaded, running):
    described = grpc_client.get_model_metadata("reacher")
    assert list(described.versions) == [loaded.manifest.version]
    tensors = {tensor.name: (tensor.datatype, list(tensor.shape)) for tensor in described.inputs}
    assert tensors == {"observation": ("FP32", [-1, 3]), "action": ("FP32", [-1, -1, 2])}
    shapes = {tensor.name: list(tensor.shape) for tensor in described.outputs}
    assert list(shapes) == ["action", *small_bundle.SUMMARY]
    assert shapes["action"] == [-1, 2]
    assert shapes["return_mean"] == [-1]
    assert shapes["gradient_samples"] == [-1, small_bundle.N, 2]
    config = grpc_client.get_model_config("reacher").config
    assert config.max_batch_size == 256
    assert [(tensor.name, list(tensor.dims), tensor.optional) for tensor in config.input] == [
        ("observation", [3], False),
        ("action", [-1, 2], True),
    ]
    assert {tensor.name: [-1, *tensor.dims] for tensor in config.output} == shapes
    assert {tensor.data_type for tensor in (*config.input, *config.output)} == {11}
    contract = running.client.get("/v1/policies/reacher").json()["contract"]
    assert config.parameters["contract"].string_value == contract


def test_one_row_gives_exactly_what_the_native_wire_gives(grpc_client, running, rows):
    decision = native_decision(running, rows[0])
    wanted = outputs(TRITON, "action", *small_bundle.SUMMARY)
    result = grpc_client.infer("reacher", inputs(TRITON, rows[:1]), outputs=wanted)
    for name in ("action", *small_bundle.SUMMARY):
        own = result.as_numpy(name)
        np.testing.assert_array_equal(own.ravel(), same_as_native(decision, name).ravel(), err_msg=name)


def test_several_rows_give_exactly_what_the_policy_gives(grpc_client, rows, decided):
    result = grpc_client.infer("reacher", inputs(TRITON, rows), request_id="seven")
    response = result.get_response()
    assert (response.model_name, response.id) == ("reacher", "seven")
    assert [output.name for output in response.outputs] == [name for name in decided if not name.endswith("_samples")]
    for output in response.outputs:
        np.testing.assert_array_equal(result.as_numpy(output.name), decided[output.name], err_msg=output.name)


def test_requested_outputs_come_in_their_order_and_samples_only_when_asked_for(grpc_client, rows, decided):
    wanted = ["gradient_samples", "return_mean", "action"]
    result = grpc_client.infer("reacher", inputs(TRITON, rows), outputs=outputs(TRITON, *wanted))
    assert [output.name for output in result.get_response().outputs] == wanted
    for name in wanted:
        np.testing.assert_array_equal(result.as_numpy(name), decided[name])


def test_candidate_actions_are_answered_with_their_laws(grpc_client, rows, candidates, assessed):
    result = grpc_client.infer("reacher", inputs(TRITON, rows, candidates))
    names = [output.name for output in result.get_response().outputs]
    assert names == [name for name in assessed if not name.endswith("_samples")]
    wanted = outputs(TRITON, "return_cvar", "return_samples")
    samples = grpc_client.infer("reacher", inputs(TRITON, rows, candidates), outputs=wanted)
    np.testing.assert_array_equal(samples.as_numpy("return_samples"), assessed["return_samples"])
    for name in names:
        np.testing.assert_array_equal(result.as_numpy(name), assessed[name], err_msg=name)


def test_typed_contents_give_what_raw_ones_give(running, rows, decided):
    request = message(rows)
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(rows.ravel().tolist())
    response = infer_raw(running, request)
    np.testing.assert_array_equal(
        np.frombuffer(response.raw_output_contents[0], "<f4").reshape(5, 2), decided["action"]
    )


NAN = np.float32([[0.1, np.nan, 0.3]])
ROW = np.float32([[0.1, 0.2, 0.3]])


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (message(NAN), "INVALID_ARGUMENT", "got nan for 'velocity' at index 1 of row 0"),
        (message(np.zeros((257, 3), np.float32)), "INVALID_ARGUMENT", "1 to 256 rows"),
        (message(ROW, raw_input_contents=[b""]), "INVALID_ARGUMENT", "one entry for each of 1 inputs, got 2"),
        (message(ROW[:, :2]), "INVALID_ARGUMENT", "must have shape [-1, 3], where -1 stands for 1 or more, got [1, 2]"),
        (message(ROW, model_version="1"), "NOT_FOUND", "is loaded in version"),
        (message(ROW, outputs=[{"name": "value"}]), "INVALID_ARGUMENT", "got 'value'"),
        (
            message(ROW, outputs=[{"name": "action", "parameters": {"classification": {"int64_param": 2}}}]),
            "INVALID_ARGUMENT",
            "got 'classification'",
        ),
        (message(ROW, parameters={"timeout": {"int64_param": -1}}), "INVALID_ARGUMENT", "microseconds"),
        (message(ROW, parameters={"timeout": {"string_param": "5"}}), "INVALID_ARGUMENT", "microseconds"),
        (message(ROW, parameters={"timeuot": {"int64_param": 5}}), "INVALID_ARGUMENT", "got 'timeuot'"),
        (service_pb2.ModelInferRequest(model_name="reacher"), "INVALID_ARGUMENT", "input 'observation' is missing"),
        (service_pb2.ModelInferRequest(model_name="walker"), "NOT_FOUND", "no policy is named 'walker'"),
    ],
)
def test_every_wrong_field_has_its_status_and_names_itself(running, request_, code, text):
    with pytest.raises(grpc.RpcError) as refused:
        infer_raw(running, request_)
    assert refused.value.code() is getattr(grpc.StatusCode, code)
    assert text in refused.value.details()


def test_contents_are_all_raw_or_all_typed_float32(running):
    both = message(ROW)
    both.inputs[0].contents.fp32_contents.extend([1.0, 2.0, 3.0])
    other = message(ROW)
    del other.raw_input_contents[:]
    other.inputs[0].contents.fp64_contents.extend([1.0, 2.0, 3.0])
    shared = message(ROW)
    shared.inputs[0].parameters["shared_memory_region"].string_param = "region"
    for request, text in (
        (both, "got both"),
        (other, "must be fp32_contents, got fp64_contents"),
        (shared, "shared memory, which is not served"),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            infer_raw(running, request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in refused.value.details()


def test_action_is_no_output_where_candidates_are_given(grpc_client, rows, candidates):
    status, text = refusal(
        lambda: grpc_client.infer(
            "reacher", inputs(TRITON, rows, candidates), outputs=outputs(TRITON, "action", "return_mean")
        )
    )
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert text.startswith("outputs must be among 'return_mean'")


def test_candidates_outside_the_limits_are_refused_by_channel(grpc_client, rows, candidates):
    status, text = refusal(lambda: grpc_client.infer("reacher", inputs(TRITON, rows, 3 * candidates)))
    assert status == "StatusCode.INVALID_ARGUMENT"
    assert "'elbow' at index 1" in text


def test_a_message_over_the_cap_is_refused_and_the_server_goes_on(grpc_client):
    status, _ = refusal(lambda: grpc_client.infer("reacher", inputs(TRITON, np.zeros((200_000, 3), np.float32))))
    assert status == "StatusCode.RESOURCE_EXHAUSTED"
    assert grpc_client.is_server_live()


def test_what_is_not_served_is_unimplemented(grpc_client):
    assert refusal(grpc_client.get_system_shared_memory_status)[0] == "StatusCode.UNIMPLEMENTED"
    assert refusal(grpc_client.get_trace_settings)[0] == "StatusCode.UNIMPLEMENTED"


def test_sequence_and_priority_change_nothing(grpc_client, rows, decided):
    result = grpc_client.infer(
        "reacher", inputs(TRITON, rows), sequence_id=7, sequence_start=True, sequence_end=True, priority=3
    )
    np.testing.assert_array_equal(result.as_numpy("action"), decided["action"])


def test_compressed_messages_are_read(grpc_client, rows, decided):
    for algorithm in ("gzip", "deflate"):
        result = grpc_client.infer("reacher", inputs(TRITON, rows), compression_algorithm=algorithm)
        np.testing.assert_array_equal(result.as_numpy("action"), decided["action"])


def test_expired_timeout_is_refused_before_anything_is_computed(gated, rows):
    """The gate is open for one inference only: one that was computed late would never end."""
    gated.armed = True
    with (
        Running(Core([ServedPolicy(gated, inline_below_s=0)])) as running,
        tritonclient.grpc.InferenceServerClient(running.grpc) as client,
    ):
        answers: queue.Queue = queue.Queue()

        def ask(**options):
            client.async_infer(
                "reacher", inputs(TRITON, rows[:1]), lambda result, error: answers.put((result, error)), **options
            )

        ask(request_id="first")
        gated.wait_until_entered()
        ask(request_id="second", timeout=1)
        eventually(lambda: waiting(running) == 1, "the second waits")
        gated.permitted.release()
        outcomes = [answers.get(timeout=PATIENCE_S) for _ in range(2)]
        (failed,) = [error for _, error in outcomes if error is not None]
        assert failed.status() == "StatusCode.DEADLINE_EXCEEDED"
        (answered,) = [result for result, _ in outcomes if result is not None]
        assert answered.get_response().id == "first"


def test_joined_requests_count_their_inference_once(gated, rows):
    """Else they make the wire look free, and more is promised than can be kept."""
    core = Core([ServedPolicy(gated, inline_below_s=0)])
    told: list[int] = []
    core.admission.decided = told.append
    with Running(core) as running, tritonclient.grpc.InferenceServerClient(running.grpc) as client:
        answers: queue.Queue = queue.Queue()
        gated.armed = True
        for waits in range(4):
            client.async_infer("reacher", inputs(TRITON, rows[:1]), lambda result, error: answers.put((result, error)))
            if not waits:
                gated.wait_until_entered()
        eventually(lambda: waiting(running) == 3, "three wait")
        gated.armed = False
        gated.permitted.release()
        results = [answers.get(timeout=PATIENCE_S) for _ in range(4)]
        assert [error for _, error in results] == [None] * 4
        took = client.get_inference_statistics("reacher").model_stats[0].inference_stats.compute_infer.ns
    alone, *joined = told
    assert sum(joined) == pytest.approx((took - alone) / 3, abs=3)


def test_statistics_count_rows_requests_and_their_stages(loaded, rows):
    with Running.of(loaded) as running, tritonclient.grpc.InferenceServerClient(running.grpc) as client:
        before = client.get_inference_statistics("reacher").model_stats[0]
        assert (before.inference_count, before.last_inference) == (0, 0)
        for _ in range(3):
            client.infer("reacher", inputs(TRITON, rows))
        refusal(lambda: client.infer("reacher", inputs(TRITON, NAN)))
        (after,) = client.get_inference_statistics().model_stats
        assert (after.name, after.version) == ("reacher", loaded.manifest.version)
        assert (after.inference_count, after.execution_count) == (15, 3)
        assert after.last_inference > 1_600_000_000_000
        stats = after.inference_stats
        assert (stats.success.count, stats.fail.count) == (3, 1)
        stages = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
        assert {stage.count for stage in stages} == {3}
        assert 0 < stats.compute_infer.ns < stats.success.ns
        assert sum(stage.ns for stage in stages) <= stats.success.ns
        assert running.metric("dst_decisions_total", method="infer", status="ok") == 15
        status, _ = refusal(lambda: client.get_inference_statistics("walker"))
        assert status == "StatusCode.NOT_FOUND"


def test_stream_answers_every_request_in_order_and_outlives_a_bad_one(grpc_client, rows, decided):
    answers: queue.Queue = queue.Queue()
    count = 5 * STREAM_IN_FLIGHT
    grpc_client.start_stream(lambda result, error: answers.put((result, error)))
    try:
        for index in range(count):
            values = NAN if index == 7 else rows[index % 5 : index % 5 + 1]
            grpc_client.async_stream_infer("reacher", inputs(TRITON, values), request_id=str(index))
        for index in range(count):
            result, error = answers.get(timeout=PATIENCE_S)
            if index == 7:
                assert "'velocity'" in error.message()
                continue
            assert error is None
            assert result.get_response().id == str(index)
            np.testing.assert_allclose(result.as_numpy("action")[0], decided["action"][index % 5], rtol=1e-5)
    finally:
        grpc_client.stop_stream()


def test_stream_with_a_message_that_is_no_request_answers_what_came_before_and_fails(running, rows):
    with grpc.insecure_channel(running.grpc) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        good = message(rows[:1]).SerializeToString()
        responses = stream(iter([good, good, b"\xff\xff\xff", good]), timeout=PATIENCE_S)
        answered = []
        with pytest.raises(grpc.RpcError) as end:
            answered.extend(responses)
    assert len(answered) == 2
    assert end.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "is no ModelInferRequest" in end.value.details()


def test_stream_reads_no_more_than_it_may_have_in_flight(gated, rows):
    """What it reads beyond would be refused for overload: one client may not have so much waiting."""
    gated.armed = True
    count, sent = 3 * STREAM_IN_FLIGHT, []

    def requests():
        for index in range(count):
            sent.append(str(index))
            yield message(rows[:1], id=str(index), outputs=[{"name": "action"}])

    with (
        Running(Core([ServedPolicy(gated, inline_below_s=0)])) as running,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        responses = service_pb2_stub(channel).ModelStreamInfer(requests(), timeout=PATIENCE_S)
        gated.wait_until_entered()
        eventually(lambda: len(sent) == count, "all is sent")
        eventually(lambda: waiting(running) >= STREAM_IN_FLIGHT - 1, "as much waits as may")
        gated.permitted.release(count)
        answered = list(responses)
    assert [response.infer_response.id for response in answered] == sent
    assert {response.error_message for response in answered} == {""}


def test_what_a_vanished_stream_had_waiting_is_not_computed(gated, rows):
    gated.armed = True
    with (
        Running(Core([ServedPolicy(gated, inline_below_s=0)])) as running,
        grpc.insecure_channel(running.grpc) as channel,
    ):
        asked = iter([message(rows[:1], id=str(index)) for index in range(8)])
        responses = service_pb2_stub(channel).ModelStreamInfer(asked, timeout=PATIENCE_S)
        gated.wait_until_entered()
        eventually(lambda: waiting(running) == 7, "the rest waits")
        responses.cancel()
        eventually(lambda: waiting(running) == 0, "the rest is dropped")
        assert not gated.entered.acquire(blocking=False), "the rest is dropped while the first is still computed"
        gated.permitted.release()


def waiting(running):
    return running.metric("dst_queue_depth", policy="reacher")


def test_stopping_ends_an_idle_stream_with_unavailable(loaded, rows):
    with Running.of(loaded) as running, grpc.insecure_channel(running.grpc) as channel:
        sending: queue.SimpleQueue = queue.SimpleQueue()
        responses = service_pb2_stub(channel).ModelStreamInfer(iter(sending.get, None), timeout=PATIENCE_S)
        sending.put(message(rows, id="1"))
        assert next(responses).infer_response.id == "1"
        running.begin_stop()
        with pytest.raises(grpc.RpcError) as ended:
            next(responses)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        sending.put(None)


def test_concurrent_asyncio_clients_get_their_own_answers(running, rows, decided):
    async def client(row: int) -> None:
        async with tritonclient.grpc.aio.InferenceServerClient(running.grpc) as own:
            assert await own.is_server_ready()
            for _ in range(10):
                result = await own.infer("reacher", inputs(TRITON, rows[row : row + 1]), request_id=str(row))
                assert result.get_response().id == str(row)
                np.testing.assert_allclose(result.as_numpy("return_mean")[0], decided["return_mean"][row], rtol=1e-5)

            async def requests():
                for index in range(20):
                    yield {
                        "model_name": "reacher",
                        "inputs": inputs(TRITON, rows[row : row + 1]),
                        "request_id": str(index),
                    }

            ids = []
            async for result, error in own.stream_infer(requests()):
                assert error is None
                ids.append(result.get_response().id)
                np.testing.assert_allclose(result.as_numpy("action")[0], decided["action"][row], rtol=1e-5)
            assert ids == [str(index) for index in range(20)]

    async def all_of_them() -> None:
        await asyncio.gather(*(client(index % 5) for index in range(8)))

    asyncio.run(all_of_them())


def test_reflection_tells_of_the_service(running):
    with grpc.insecure_channel(running.grpc) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        name = "inference.GRPCInferenceService"
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=name),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="dst.policy.v1.PolicyService"),
        ]
        listed, ours, native = stub.ServerReflectionInfo(iter(asked), timeout=PATIENCE_S)
    assert name in [service.name for service in listed.list_services_response.service]
    assert b"ModelInferRequest" in ours.file_descriptor_response.file_descriptor_proto[0]
    assert b"ActRequest" in native.file_descriptor_response.file_descriptor_proto[0]


def test_own_stub_speaks_it_too(running):
    from protos import open_inference_pb2 as pb

    with grpc.insecure_channel(running.grpc) as channel:
        assert GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=PATIENCE_S).live
