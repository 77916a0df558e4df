"""The protocol over HTTP, spoken by the real tritonclient."""

import asyncio
import json

import numpy as np
import pytest
import tritonclient.http
import tritonclient.http.aio
from tritonclient.utils import InferenceServerException

from tests.server import small_bundle
from tests.server.oip.conftest import native_decision, same_as_native
from tests.server.oip.triton import inputs, outputs

TRITON = tritonclient.http
ROW = np.float32([[0.1, 0.2, 0.3]])
LENGTH = "Inference-Header-Content-Length"


def refusal(call):
    with pytest.raises(InferenceServerException) as refused:
        call()
    return refused.value.status(), refused.value.message()


def post(running, body, **headers):
    content = body if isinstance(body, bytes) else json.dumps(body)
    return running.client.post("/v2/models/reacher/infer", content=content, headers=headers)


def body(**fields):
    tensor = {"name": "observation", "datatype": "FP32", "shape": [1, 3], "data": [0.1, 0.2, 0.3]}
    return {"inputs": [tensor | fields]}


def test_health_metadata_and_config_are_those_of_grpc(http_client, grpc_client, loaded):
    assert http_client.is_server_live()
    assert http_client.is_server_ready()
    assert http_client.is_model_ready("reacher", loaded.manifest.version)
    assert not http_client.is_model_ready("reacher", "1")
    assert not http_client.is_model_ready("walker")
    as_json = {"as_json": True}
    assert http_client.get_server_metadata() == grpc_client.get_server_metadata(**as_json)
    assert strings(http_client.get_model_metadata("reacher")) == grpc_client.get_model_metadata("reacher", **as_json)
    config = http_client.get_model_config("reacher", loaded.manifest.version)
    assert config["max_batch_size"] == 256
    assert config["input"][1] == {"name": "action", "data_type": "TYPE_FP32", "dims": [-1, 2], "optional": True}
    theirs = grpc_client.get_model_config("reacher").config
    assert [tensor["name"] for tensor in config["output"]] == [tensor.name for tensor in theirs.output]


def strings(value):
    """With whole numbers as protobuf's JSON has them."""
    if isinstance(value, dict):
        return {key: strings(part) for key, part in value.items()}
    if isinstance(value, list):
        return [strings(part) for part in value]
    return str(value) if isinstance(value, int) else value


@pytest.mark.parametrize("sent_binary", [True, False])
@pytest.mark.parametrize("asked_binary", [True, False])
def test_binary_and_json_tensors_give_exactly_what_the_native_wire_gives(
    http_client, running, rows, sent_binary, asked_binary
):
    decision = native_decision(running, rows[0])
    names = ("action", *small_bundle.SUMMARY)
    result = http_client.infer(
        "reacher",
        inputs(TRITON, rows[:1], binary_data=sent_binary),
        outputs=outputs(TRITON, *names, binary_data=asked_binary),
        request_id="seven",
    )
    response = result.get_response()
    assert (response["model_name"], response["id"]) == ("reacher", "seven")
    assert [output["name"] for output in response["outputs"]] == list(names)
    assert all(("data" in output) is not asked_binary for output in response["outputs"])
    for name in names:
        own = result.as_numpy(name)
        assert own.dtype == np.float32
        np.testing.assert_array_equal(own.ravel(), same_as_native(decision, name).ravel(), err_msg=name)


def test_without_requested_outputs_all_but_the_samples_come_as_binary(http_client, rows, decided):
    result = http_client.infer("reacher", inputs(TRITON, rows))
    names = [output["name"] for output in result.get_response()["outputs"]]
    assert names == [name for name in decided if not name.endswith("_samples")]
    for name in names:
        np.testing.assert_array_equal(result.as_numpy(name), decided[name], err_msg=name)


def test_binary_and_json_outputs_may_be_mixed(http_client, rows, decided):
    wanted = [
        *outputs(TRITON, "return_mean", binary_data=False),
        *outputs(TRITON, "action", binary_data=True),
        *outputs(TRITON, "return_std", binary_data=False),
        *outputs(TRITON, "gradient_mean", binary_data=True),
    ]
    result = http_client.infer("reacher", inputs(TRITON, rows), outputs=wanted)
    for name in ("return_mean", "action", "return_std", "gradient_mean"):
        np.testing.assert_array_equal(result.as_numpy(name), decided[name], err_msg=name)


@pytest.mark.parametrize("binary", [True, False])
def test_candidate_actions_are_answered_with_their_laws(http_client, rows, candidates, assessed, binary):
    result = http_client.infer(
        "reacher",
        inputs(TRITON, rows, candidates, binary_data=binary),
        outputs=outputs(TRITON, "return_cvar", "gradient_samples", binary_data=binary),
    )
    for name in ("return_cvar", "gradient_samples"):
        np.testing.assert_array_equal(result.as_numpy(name), assessed[name])


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_bodies_are_read(http_client, rows, decided, algorithm):
    result = http_client.infer(
        "reacher",
        inputs(TRITON, rows),
        request_compression_algorithm=algorithm,
        response_compression_algorithm=algorithm,
    )
    np.testing.assert_array_equal(result.as_numpy("action"), decided["action"])


def test_plain_json_needs_nothing_but_the_numbers(running, rows, decided):
    reply = post(running, body(shape=[5, 3], data=rows.tolist()) | {"outputs": [{"name": "action"}]})
    assert reply.headers["content-type"] == "application/json"
    content = reply.json()
    assert set(content) == {"model_name", "model_version", "outputs"}
    (output,) = content["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("action", "FP32", [5, 2])
    np.testing.assert_array_equal(np.float32(output["data"]).reshape(5, 2), decided["action"])


def test_async_infer_and_concurrent_asyncio_clients_get_their_own_answers(http_client, running, rows, decided):
    pending = [http_client.async_infer("reacher", inputs(TRITON, rows[row : row + 1])) for row in range(5)]
    for row, request in enumerate(pending):
        np.testing.assert_allclose(request.get_result().as_numpy("action")[0], decided["action"][row], rtol=1e-5)

    async def client(row: int) -> None:
        async with tritonclient.http.aio.InferenceServerClient(running.http.removeprefix("http://")) as own:
            assert await own.is_model_ready("reacher")
            for binary in (True, False) * 5:
                result = await own.infer(
                    "reacher", inputs(TRITON, rows[row : row + 1], binary_data=binary), request_id=str(row)
                )
                assert result.get_response()["id"] == str(row)
                np.testing.assert_allclose(result.as_numpy("action")[0], decided["action"][row], rtol=1e-5)

    async def all_of_them() -> None:
        await asyncio.gather(*(client(index % 5) for index in range(8)))

    asyncio.run(all_of_them())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "body: Invalid JSON"),
        (b"[]", "body: Input should be"),
        (b"{}", "inputs: Field required"),
        ({"inputs": {}}, "inputs: Input should be a valid array"),
        ({"inputs": []}, "input 'observation' is missing"),
        (body(name=7), "inputs.0.name: Input should be a valid string"),
        (body(name="state"), "got 'state'"),
        (body(datatype="INT32"), "must have datatype FP32, got 'INT32'"),
        (body(shape=[3]), "must have shape [-1, 3]"),
        (body(shape=["1", 3]), "inputs.0.shape.0: Input should be a valid integer"),
        (body(shape=[1e400, 3]), "inputs.0.shape.0"),
        (body(shape=[2, 3]), "must hold 6 numbers, got 3"),
        (body(data=[0.1, 0.2]), "must hold 3 numbers, got 2"),
        (body(data="0.1"), "inputs.0.data: Input should be a valid array"),
        (body(data=[0.1, "0.2", 0.3]), "got '0.2' as number 1"),
        (body(data=[0.1, float("nan"), 0.3]), "got nan for 'velocity' at index 1 of row 0"),
        (body(data=[0.1, 1e39, 0.3]), "got inf for 'velocity'"),
        (body(data=None), "must hold data or state 'binary_data_size'"),
        (body(parameters={"binary_data_size": 12}), "got both"),
        (body(data=None, parameters={"binary_data_size": 12}), "where 0 are left, got 12"),
        (body(data=None, parameters={"binary_data_size": -1}), "got -1"),
        (body(data=None, parameters={"binary_data_size": "12"}), "got '12'"),
        (body(parameters={"shared_memory_region": "x"}), "shared memory, which is not served"),
        (body() | {"outputs": [{"name": "value"}]}, "got 'value'"),
        (body() | {"outputs": [{"name": "action", "parameters": {"binary_data": 1}}]}, "must be true or false"),
        (body() | {"outputs": [{"name": "action", "parameters": {"classification": 1}}]}, "got 'classification'"),
        (body() | {"parameters": {"binary_data_output": "yes"}}, "must be true or false"),
        (body() | {"parameters": {"timeout": -5}}, "microseconds"),
        (body() | {"parameters": {"timeout": 0.5}}, "microseconds"),
        (body() | {"parameters": {"timeuot": 5}}, "got 'timeuot'"),
        (body() | {"priority": 5}, "priority: Extra inputs are not permitted"),
    ],
)
def test_every_wrong_field_is_refused_by_name(running, content, message):
    reply = post(running, content)
    assert reply.status_code == 422
    assert message in reply.json()["error"]


HEADER = json.dumps({"inputs": [{"name": "observation", "datatype": "FP32", "shape": [1, 3],
                                 "parameters": {"binary_data_size": 12}}]}).encode()  # fmt: skip


@pytest.mark.parametrize(
    ("content", "headers", "message"),
    [
        (HEADER + ROW.tobytes(), {LENGTH: "abc"}, f"{LENGTH} must be the bytes of the body's JSON"),
        (HEADER + ROW.tobytes(), {LENGTH: "-1"}, f"{LENGTH} must be"),
        (HEADER + ROW.tobytes(), {LENGTH: "9" * 5000}, f"{LENGTH} must be"),
        (HEADER + ROW.tobytes(), {LENGTH: str(len(HEADER) + 13)}, f"{LENGTH} must be"),
        (HEADER + ROW.tobytes(), {LENGTH: str(len(HEADER) - 1)}, "Invalid JSON"),
        (HEADER + ROW.tobytes(), {}, "Invalid JSON"),
        (HEADER + ROW.tobytes()[:-1], {LENGTH: str(len(HEADER))}, "where 11 are left, got 12"),
        (HEADER + ROW.tobytes() + b"x", {LENGTH: str(len(HEADER))}, "1 bytes more than its inputs say"),
        (HEADER + ROW.tobytes(), {"Content-Encoding": "br"}, "Content-Encoding must be gzip or deflate"),
        (HEADER + ROW.tobytes(), {"Content-Encoding": "gzip"}, "must be gzip data"),
    ],
)
def test_a_body_whose_headers_or_sizes_lie_is_refused(running, content, headers, message):
    reply = post(running, content, **headers)
    assert reply.status_code == 422
    assert message in reply.json()["error"]


def test_client_sees_status_and_message(http_client):
    status, message = refusal(lambda: http_client.infer("walker", inputs(TRITON, ROW)))
    assert status == "404"
    assert message.startswith("no policy is named 'walker'")
    assert refusal(lambda: http_client.infer("reacher", inputs(TRITON, ROW), model_version="1"))[0] == "404"
    assert refusal(lambda: http_client.infer("reacher", inputs(TRITON, ROW[:, :2])))[0] == "422"
    assert refusal(http_client.get_system_shared_memory_status)[0] == "404"


def test_a_body_over_the_cap_is_refused(http_client):
    status, _ = refusal(lambda: http_client.infer("reacher", inputs(TRITON, np.zeros((200_000, 3), np.float32))))
    assert status == "413"


def test_an_id_is_echoed_as_it_came_and_must_be_text(running):
    asked = body() | {"outputs": [{"name": "action"}]}
    assert post(running, asked | {"id": 'Ω "\n'}).json()["id"] == 'Ω "\n'
    reply = post(running, json.dumps(asked | {"id": "\ud800"}).encode())
    assert reply.status_code == 422
    assert "Invalid JSON" in reply.json()["error"]


def test_statistics_of_one_model_and_of_all(http_client, loaded, rows):
    before = http_client.get_inference_statistics("reacher")["model_stats"][0]
    http_client.infer("reacher", inputs(TRITON, rows))
    (after,) = http_client.get_inference_statistics()["model_stats"]
    assert after["version"] == loaded.manifest.version
    assert after["inference_count"] - before["inference_count"] == 5
    assert after["inference_stats"]["success"]["count"] - before["inference_stats"]["success"]["count"] == 1
    assert refusal(lambda: http_client.get_inference_statistics("walker"))[0] == "404"


def test_openapi_describes_every_route_and_refers_to_nothing_missing(running):
    document = running.client.get("/openapi.json").json()
    assert {path for path in document["paths"] if path.startswith("/v2")} >= {
        "/v2",
        "/v2/health/live",
        "/v2/models/{model}/versions/{version}/infer",
        "/v2/repository/index",
        "/v2/repository/models/{model}/load",
    }
    text = json.dumps(document)
    references = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    assert references
    for reference in references:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
    for path, item in document["paths"].items():
        for operation in item.values():
            named = {parameter["name"] for parameter in operation.get("parameters", [])}
            assert named >= {part[1:-1] for part in path.split("/") if part.startswith("{")}, path
