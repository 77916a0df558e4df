"""open_inference.proto against the definitions that tritonclient brings: the same on the wire, and both in one process."""

import subprocess
import sys

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

pytest.importorskip("tritonclient.grpc")

from tritonclient.grpc import model_config_pb2, service_pb2

from protos import open_inference_pb2 as pb

THEIRS = {**model_config_pb2.DESCRIPTOR.message_types_by_name, **service_pb2.DESCRIPTOR.message_types_by_name}


def every_message(descriptors) -> dict[str, Descriptor]:
    found = {}
    for descriptor in descriptors:
        found[descriptor.full_name] = descriptor
        found.update(every_message(descriptor.nested_types))
    return found


def wire(field: FieldDescriptor) -> tuple[object, ...]:
    """What of a field decides its bytes and its JSON."""
    kind = field.message_type or field.enum_type
    oneof = field.containing_oneof
    return field.number, field.type, field.is_repeated, kind and kind.full_name, oneof and oneof.name


OURS = every_message(pb.DESCRIPTOR.message_types_by_name.values())
PUBLIC = every_message(THEIRS.values())


@pytest.mark.parametrize("name", OURS)
def test_fields_have_the_public_numbers_and_types(name):
    ours, theirs = OURS[name], PUBLIC[name]
    assert ours.GetOptions().map_entry == theirs.GetOptions().map_entry
    for field in ours.fields:
        assert wire(field) == wire(theirs.fields_by_name[field.name]), field.name


def test_enum_values_have_the_public_numbers():
    for name, enum in pb.DESCRIPTOR.enum_types_by_name.items():
        theirs = model_config_pb2.DESCRIPTOR.enum_types_by_name[name]
        for value in enum.values:
            assert value.number == theirs.values_by_name[value.name].number


def test_methods_have_the_public_types():
    (ours,), (theirs,) = pb.DESCRIPTOR.services_by_name.values(), service_pb2.DESCRIPTOR.services_by_name.values()
    assert ours.full_name == theirs.full_name
    for method in ours.methods:
        public = theirs.methods_by_name[method.name]
        assert (method.client_streaming, method.server_streaming) == (public.client_streaming, public.server_streaming)
        assert method.input_type.full_name == public.input_type.full_name
        assert method.output_type.full_name == public.output_type.full_name


def test_requests_and_replies_lose_nothing_that_this_server_reads_or_writes():
    request = service_pb2.ModelInferRequest(model_name="reacher", id="7", raw_input_contents=[b"\0\0\x80?"])
    request.inputs.add(name="observation", datatype="FP32", shape=[1, 1])
    request.parameters["timeout"].int64_param = 5000
    request.outputs.add(name="action").parameters["binary_data"].bool_param = True
    assert pb.ModelInferRequest.FromString(request.SerializeToString()).SerializeToString(
        deterministic=True
    ) == request.SerializeToString(deterministic=True)


@pytest.mark.parametrize("order", [("protos.open_inference_pb2", "tritonclient.grpc"), ("tritonclient.grpc", "protos")])
def test_a_process_may_import_both_in_any_order(order):
    program = "".join(f"import {module}\n" for module in (*order, "protos.open_inference_pb2"))
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
