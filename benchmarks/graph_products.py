"""The matrix products of an ONNX graph, with nothing around them: the floor of what it can cost."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

PRODUCTS = {"MatMul": "MatMul", "FusedMatMul": "FusedMatMul", "Gemm": "Gemm", "FusedGemm": "Gemm"}
"""What ONNX Runtime calls them, and what they are without the activation behind them."""
Arrays = dict[str, NDArray[np.float32]]


def products_alone(model: bytes, feed: Arrays) -> tuple[bytes, int]:
    """The products that ONNX Runtime does for an input, each on the very numbers and with the very weights it has there.

    Returns:
        A graph without required inputs whose outputs are all products, and the floating-point operations of one run.
    """
    graph = _as_run(model)
    nodes = [node for node in graph.graph.node if node.op_type in PRODUCTS]
    weights = {weight.name: weight for weight in graph.graph.initializer}
    given = _values(graph, sorted({name for node in nodes for name in node.input if name not in weights}), feed)
    products = [_product(node, given) for node in nodes]
    inputs = [
        helper.make_tensor_value_info(_given(name), onnx.TensorProto.FLOAT, value.shape)
        for name, value in given.items()
    ]
    outputs = [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None) for node in products]
    # Numbers that an input may override are no constants, so nothing is computed beforehand; weights are, and are packed as in the graph.
    numbers = [numpy_helper.from_array(value, _given(name)) for name, value in given.items()]
    constant = [weights[name] for name in {name for node in nodes for name in node.input} if name in weights]
    alone = helper.make_graph(products, "products", inputs, outputs, [*numbers, *constant])
    floor = helper.make_model(alone, opset_imports=graph.opset_import, ir_version=graph.ir_version)
    sizes = {name: value.shape for name, value in given.items()} | {name: tuple(weights[name].dims) for name in weights}
    return floor.SerializeToString(), sum(_operations(node, sizes) for node in nodes)


def _as_run(model: bytes) -> onnx.ModelProto:
    """After ONNX Runtime's own rewriting."""
    with tempfile.TemporaryDirectory() as directory:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(directory) / "as-run.onnx")
        options.log_severity_level = 4
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _values(graph: onnx.ModelProto, names: list[str], feed: Arrays) -> Arrays:
    """What these values are for an input."""
    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in feed)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    computed = [name for name in names if name not in feed]
    found = dict(zip(computed, session.run(computed, feed), strict=True)) if computed else {}
    return {name: found[name] if name in found else feed[name] for name in names}


def _given(name: str) -> str:
    """A product's input under a name of its own: it may be another one's output, and they shall not wait for each other."""
    return f"{name} (given)"


def _product(node: onnx.NodeProto, given: Arrays) -> onnx.NodeProto:
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.input[:] = [_given(name) if name in given else name for name in node.input]
    if alone.op_type == "FusedGemm":
        kept = [attribute for attribute in node.attribute if not attribute.name.startswith("activation")]
        del alone.attribute[:]
        alone.attribute.extend(kept)
        alone.domain = ""
    alone.op_type = PRODUCTS[node.op_type]
    return alone


def _operations(node: onnx.NodeProto, sizes: dict[str, tuple[int, ...]]) -> int:
    """Two per multiplication of every number of the first factor with a column of the second."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    first, second = (sizes[name] for name in node.input[:2])
    columns = 1 if len(second) == 1 else second[-2 if transposed else -1]
    return 2 * int(np.prod(first)) * columns
