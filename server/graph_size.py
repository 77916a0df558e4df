"""How large an ONNX graph is: its nodes, and the numbers stored in it."""

import functools
import math
from dataclasses import dataclass
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

_FIELDS = {
    "Model": (("graph", 7, "Graph", False),),
    "Graph": (("node", 1, "Node", True), ("initializer", 5, "Tensor", True)),
    "Node": (("attribute", 5, "Attribute", True),),
    "Attribute": (("t", 5, "Tensor", False),),
    "Tensor": (("dims", 1, "", True),),
}
"""Of onnx.proto (ONNX 1.x, whose numbers are fixed) what sizes need: name, number, message or integer, repeated."""


@dataclass(frozen=True, kw_only=True)
class GraphSize:
    """Size of one graph."""

    bytes: int
    """Of the file."""
    nodes: int
    """Operators, one for each time it runs."""
    numbers: int
    """Stored: weights, baked noise and reference observations alike."""


def graph_size(model: bytes) -> GraphSize:
    """Counts what a valid ONNX model of one graph holds, without running it."""
    parsed: Any = _model_class().FromString(model)
    graph = parsed.graph
    tensors = [*graph.initializer, *(attribute.t for node in graph.node for attribute in node.attribute)]
    # A tensor that is not there has no dimensions either, as a scalar has; scalars are not worth telling apart.
    numbers = sum(math.prod(tensor.dims) for tensor in tensors if tensor.dims)
    return GraphSize(bytes=len(model), nodes=len(graph.node), numbers=numbers)


@functools.cache
def _model_class() -> type[Message]:
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="graph_size.proto", package="graph_size", syntax="proto3")
    for message, fields in _FIELDS.items():
        described = file.message_type.add(name=message)
        for name, number, kind, repeated in fields:
            described.field.add(
                name=name,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type=kinds.TYPE_MESSAGE if kind else kinds.TYPE_INT64,
                type_name=f".graph_size.{kind}" if kind else None,
            )
    pool: Any = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("graph_size.Model"))
