"""The ONNX file of a case behind one call, for servers that bring no ONNX Runtime of their own."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.case import Case

Model = Callable[[NDArray[np.float32]], dict[str, NDArray[np.float32]]]


def open_model(case: Case) -> Model:
    """All outputs of the case for rows (B, S), each (B, ...), with the session options of `server.runtime.open_session`."""
    options: Any = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(case.model, options, providers=["CPUExecutionProvider"])
    names = list(case.outputs)
    return lambda rows: dict(zip(names, session.run(names, {"observation": rows}), strict=True))
