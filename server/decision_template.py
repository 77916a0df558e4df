"""Decisions as messages, by writing numbers into a message that was serialised once.

All decisions of one policy and detail have the same fields of the same sizes, and in the wire format of protobuf a float is four
little-endian bytes wherever it stands; a scalar field may be written out though it is zero.
"""

import sys
from typing import Any

import numpy as np

from protos import policy_pb2 as pb
from protos.codec import FloatArray
from server.row_layout import RowLayout

SCALARS = frozenset(field.name for field in pb.Summary.DESCRIPTOR.fields if not field.is_repeated)
SAMPLES = {"return_samples": "returns", "gradient_samples": "action_gradients"}


class DecisionTemplate:
    """Rows of a layout as `pb.Decision`.

    Args:
        layout: of the row; the fields of the message follow from it.
    """

    def __init__(self, layout: RowLayout) -> None:
        self._layout = layout
        # Numbers that differ in all four bytes show where numbers are; counting shows which is which.
        one, other = (self._plain(np.full(layout.width, bits, np.uint32).view(np.float32)) for bits in FILLS)
        places = np.flatnonzero(one != other)
        counted = self._plain(np.arange(1, layout.width + 1, dtype=np.float32))
        order = counted[places].view(np.float32).argsort()
        self._places = places.reshape(-1, 4)[order].ravel()
        self._bytes = one

    def _plain(self, row: FloatArray) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
        """The message field by field."""
        values = self._layout.split(row)
        action = values.pop("action").tolist()
        samples = {SAMPLES[name]: values.pop(name).ravel().tolist() for name in SAMPLES if name in values}
        fields: dict[str, Any] = {
            name: float(value) if name in SCALARS else value.tolist() for name, value in values.items()
        }
        message = pb.Decision(
            action=action,
            summary=pb.Summary(**fields) if fields else None,
            samples=pb.Samples(count=len(samples["returns"]), **samples) if samples else None,
        )
        return np.frombuffer(message.SerializeToString(), np.uint8)

    def serialised(self, row: FloatArray) -> bytes:
        """The message of a row (width,), as bytes to parse."""
        message = self._bytes.copy()
        message[self._places] = row.view(np.uint8)
        return message.tobytes()


FILLS = (0x3F3F3F3F, 0x40404040)

assert sys.byteorder == "little", "rows are written as they lie in memory"
