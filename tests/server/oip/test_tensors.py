import contextlib
import gzip
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import open_inference_pb2 as pb
from server.errors import InvalidInputError
from server.oip.grpc_service import decoded
from server.oip.http_bodies import Exchange, decompressed
from server.oip.tensors import SentTensor, TensorSpec, checked_inputs, checked_outputs, raw

SPECS = (
    TensorSpec(name="observation", shape=(-1, 3)),
    TensorSpec(name="action", shape=(-1, -1, 2), optional=True),
)
ROW = struct.pack("<3f", 0.5, -1.0, 2.25)


def sent(**fields):
    return SentTensor(**{"name": "observation", "datatype": "FP32", "shape": [1, 3], "content": ROW, **fields})


def refusal(*tensors):
    with pytest.raises(InvalidInputError) as refused:
        checked_inputs(tensors, SPECS)
    return str(refused.value)


@pytest.mark.parametrize("content", [ROW, memoryview(ROW), [0.5, -1, 2.25], [[0.5, -1.0, 2.25]]])
def test_bytes_and_numbers_flat_or_nested_give_the_same_array(content):
    array = checked_inputs([sent(content=content)], SPECS)["observation"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.float32([[0.5, -1.0, 2.25]]))


@given(st.lists(st.floats(width=32), min_size=3, max_size=3))
def test_raw_contents_come_back_bit_for_bit(numbers):
    values = np.float32([numbers])
    np.testing.assert_array_equal(
        checked_inputs([sent(content=raw(values))], SPECS)["observation"].view(np.int32), values.view(np.int32)
    )


def test_raw_contents_are_little_endian_whatever_the_array():
    assert raw(np.array([1.0], ">f4")) == raw(np.array([9.0, 1.0], "<f4")[1::2]) == struct.pack("<f", 1.0)


def test_unaligned_contents_inside_a_body_are_read():
    body = memoryview(b"x" + ROW)[1:]
    np.testing.assert_array_equal(checked_inputs([sent(content=body)], SPECS)["observation"], [[0.5, -1.0, 2.25]])


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (sent(name="observations"), "inputs must be among 'observation', 'action', got 'observations'"),
        (sent(datatype="FP64"), "must have datatype FP32, got 'FP64'"),
        (sent(datatype="fp32"), "must have datatype FP32"),
        (sent(datatype=""), "must have datatype FP32"),
        (sent(shape=[3]), "must have shape [-1, 3]"),
        (sent(shape=[1, 1, 3]), "must have shape [-1, 3]"),
        (sent(shape=[]), "must have shape [-1, 3]"),
        (sent(shape=[0, 3], content=b""), "-1 stands for 1 or more"),
        (sent(shape=[-1, 3]), "got [-1, 3]"),
        (sent(shape=[1, -3]), "must have shape"),
        (sent(shape=[1 << 62, 3]), "must have shape"),
        (sent(shape=[10**4000, 3]), "must have shape"),
        (sent(shape=[True, 3]), "must have shape"),
        (sent(shape=[1.0, 3]), "must have shape"),
        (sent(shape=[(1 << 31) - 1, 3]), "must have 25769803764 bytes"),
        (sent(content=ROW[:-1]), "must have 12 bytes of little-endian float32, got 11"),
        (sent(content=ROW + b"\0"), "got 13"),
        (sent(content=b""), "got 0"),
        (sent(content=[]), "must hold 3 numbers, got 0"),
        (sent(content=[1.0, 2.0]), "must hold 3 numbers, got 2"),
        (sent(shape=[(1 << 31) - 1, 3], content=[1.0]), "must hold 6442450941 numbers"),
        (sent(content=[[1.0, 2.0]]), "nested as its shape [1, 3] says"),
        (sent(content=[[[1.0, 2.0, 3.0]]]), "nested as its shape [1, 3] says"),
        (sent(content=[[1.0, 2.0, 3.0], 4.0]), "nested as its shape"),
        (sent(content=[1.0, "2", 3.0]), "must hold numbers, got '2' as number 1"),
        (sent(content=[1.0, True, 3.0]), "got True as number 1"),
        (sent(content=[1.0, None, 3.0]), "got None as number 1"),
        (sent(content=[1.0, {"a": 1}, 3.0]), "got {'a': 1} as number 1"),
        (sent(content=[1.0, 10**400, 3.0]), "a whole number beyond it"),
    ],
)
def test_a_wrong_field_is_refused_by_name(tensor, message):
    assert message in refusal(tensor)


def test_missing_and_repeated_inputs_are_refused():
    assert refusal() == "input 'observation' is missing; send it as FP32"
    assert "given twice" in refusal(sent(), sent())


def test_a_message_repeats_little_of_what_came_and_only_what_prints():
    message = refusal(sent(name="\ud800\n" + "x" * 10_000))
    assert message.isprintable()
    assert len(message) < 300


def test_unknown_and_repeated_outputs_are_refused():
    assert checked_outputs(["action", "observation"], SPECS) == ("action", "observation")
    with pytest.raises(InvalidInputError, match=r"outputs must be among 'observation', 'action', got 'value'"):
        checked_outputs(["action", "value"], SPECS)
    with pytest.raises(InvalidInputError, match="requested twice"):
        checked_outputs(["action", "action"], SPECS)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=20,
)
TENSORS = st.builds(
    SentTensor,
    name=st.sampled_from(["observation", "action"]) | st.text(max_size=5),
    datatype=st.sampled_from(["FP32", "FP32", "INT64"]) | st.text(max_size=5),
    shape=st.lists(st.integers(-2, 6) | st.integers(), max_size=4),
    content=st.binary(max_size=64) | st.lists(JSON, max_size=8),
)


@given(st.lists(TENSORS, max_size=3))
def test_arbitrary_tensors_are_checked_or_refused(tensors):
    try:
        values = checked_inputs(tensors, SPECS)
    except InvalidInputError:
        return
    for tensor in tensors:
        assert values[tensor.name].shape == tuple(tensor.shape)
        assert values[tensor.name].dtype == np.float32


PARAMETERS = st.dictionaries(
    st.sampled_from(["timeout", "sequence_id", "binary_data_size", "binary_data"]) | st.text(max_size=4),
    st.builds(pb.InferParameter, int64_param=st.integers(-(2**63), 2**63 - 1))
    | st.builds(pb.InferParameter, string_param=st.text(max_size=4))
    | st.builds(pb.InferParameter, double_param=st.floats())
    | st.builds(pb.InferParameter),
    max_size=2,
)
MESSAGES = st.builds(
    pb.ModelInferRequest,
    id=st.text(max_size=4),
    parameters=PARAMETERS,
    inputs=st.lists(
        st.builds(
            pb.ModelInferRequest.InferInputTensor,
            name=st.sampled_from(["observation", "action", ""]),
            datatype=st.sampled_from(["FP32", "FP16"]),
            shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=3),
            parameters=PARAMETERS,
            contents=st.builds(
                pb.InferTensorContents,
                fp32_contents=st.lists(st.floats(width=32), max_size=6),
                int_contents=st.lists(st.integers(-5, 5), max_size=1),
            ),
        ),
        max_size=2,
    ),
    raw_input_contents=st.lists(st.binary(max_size=24), max_size=2),
)


@given(MESSAGES)
def test_arbitrary_messages_are_decoded_or_refused(message):
    with contextlib.suppress(InvalidInputError):
        checked_inputs(decoded(message).inputs, SPECS)


def exchange(body, *, header_length=None, encoding=None):
    return Exchange(body, header_length=header_length, encoding=encoding, max_bytes=4096)


LENGTHS = st.none() | st.text(max_size=6) | st.integers(-5, 200).map(str)


@given(st.binary(max_size=200), LENGTHS, st.none() | st.sampled_from(["gzip", "deflate", "br", ""]))
def test_arbitrary_bytes_as_a_body_are_refused(body, header_length, encoding):
    with pytest.raises(InvalidInputError):
        exchange(body, header_length=header_length, encoding=encoding).decoded()


BODIES = st.fixed_dictionaries(
    {
        "inputs": st.lists(
            st.fixed_dictionaries(
                {
                    "name": st.sampled_from(["observation", "action"]),
                    "datatype": st.just("FP32"),
                    "shape": st.lists(st.integers(-2, 4) | st.integers(), max_size=3),
                },
                optional={
                    "data": JSON | st.lists(JSON, max_size=6),
                    "parameters": st.dictionaries(st.just("binary_data_size"), st.integers(-1, 40) | JSON, max_size=1),
                },
            ),
            max_size=2,
        )
        | JSON
    },
    optional={"id": st.text() | JSON, "parameters": JSON, "outputs": JSON, "extra": JSON},
)


@given(BODIES, st.binary(max_size=48), st.sampled_from([None, 0, 1, -1]))
def test_arbitrary_json_with_bytes_behind_it_is_decoded_or_refused(content, behind, off):
    header = json.dumps(content).encode("utf-8", "surrogatepass")
    length = None if off is None else str(len(header) + off)
    with contextlib.suppress(InvalidInputError):
        checked_inputs(exchange(header + behind, header_length=length).decoded().inputs, SPECS)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_body_is_never_unpacked_beyond_the_cap(encoding):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}[encoding]
    assert decompressed(pack(b"x" * 4096), encoding, 4096) == b"x" * 4096
    bomb = pack(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInputError, match="at most 4096 bytes unpacked"):
            decompressed(bomb, encoding, 4096)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
    for body, message in (
        (pack(b"x" * 99)[:-3], "truncated"),
        (pack(b"x") + b"y", "bytes behind it"),
        (b"no such data", "must be"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            decompressed(body, encoding, 4096)
