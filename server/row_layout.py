"""Where each output of a graph lies in one flat row of numbers: what is one array costs one step to check, copy and send."""

import math
from collections.abc import Mapping

import numpy as np

from protos.codec import FloatArray


class RowLayout:
    """The outputs of a graph one after the other.

    Args:
        shapes: output name to its shape without the batch axis, in order.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.places: dict[str, slice] = {}
        start = 0
        for name, shape in shapes.items():
            self.places[name] = slice(start, start + math.prod(shape))
            start += math.prod(shape)
        self.width = start

    @property
    def names(self) -> tuple[str, ...]:
        """Of the outputs, in order."""
        return tuple(self.shapes)

    def split(self, rows: FloatArray) -> dict[str, FloatArray]:
        """(..., width) to views by name, (..., *shape)."""
        leading = rows.shape[:-1]
        return {name: rows[..., place].reshape(leading + self.shapes[name]) for name, place in self.places.items()}

    def join(self, values: Mapping[str, FloatArray], axes: int) -> FloatArray:
        """Arrays by name, with so many leading axes in common, to (..., width)."""
        leading = values[self.names[0]].shape[:axes]
        return np.concatenate([values[name].reshape((*leading, -1)) for name in self.names], axis=-1)

    def name_at(self, index: int) -> str:
        """The output that a number of a row belongs to."""
        return next(name for name, place in self.places.items() if index < place.stop)
