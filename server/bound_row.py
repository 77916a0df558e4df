"""One row through a graph without making an array per output: inputs and outputs are bound to memory once (ONNX Runtime's IO binding)."""

import numpy as np
import onnxruntime as ort

from protos.codec import FloatArray
from server.row_layout import RowLayout


class BoundRow:
    """A session on the CPU, for one observation at a time. Not for several threads at once.

    Args:
        session: with the input `observation`, (1, S).
        layout: the outputs to fetch.
        observation_size: S.
    """

    def __init__(self, session: ort.InferenceSession, layout: RowLayout, *, observation_size: int) -> None:
        self._observation: FloatArray = np.zeros((1, observation_size), np.float32)
        self._row: FloatArray = np.zeros((1, layout.width), np.float32)
        self._session = session
        self._binding = session.io_binding()
        shape, address = self._observation.shape, self._observation.ctypes.data
        self._binding.bind_input("observation", "cpu", 0, np.float32, shape, address)
        for name, place in layout.places.items():
            address = self._row[0, place].ctypes.data
            self._binding.bind_output(name, "cpu", 0, np.float32, (1, *layout.shapes[name]), address)

    def run(self, observation: FloatArray) -> FloatArray:
        """The outputs (1, width) for an observation (S,)."""
        self._observation[0] = observation
        self._session.run_with_iobinding(self._binding)
        return self._row.copy()
