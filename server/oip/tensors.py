"""Named tensors as they came, checked against what a model takes before anything is made of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protos.codec import FloatArray
from server.errors import InvalidInputError

DATATYPE = "FP32"
ITEM_BYTES = 4
MAX_AXIS = (1 << 31) - 1
SHOWN = 64
"""Characters of a client's own text that a message repeats."""


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A float32 tensor that a model takes or gives."""

    name: str
    shape: tuple[int, ...]
    """-1 for an axis that the request chooses."""
    optional: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class SentTensor:
    """An input as a wire read it, nothing of it checked."""

    name: str
    datatype: str
    shape: Sequence[int]
    content: bytes | memoryview | Sequence[object]
    """Bytes are little-endian, row-major; otherwise numbers, flat in row-major order or nested as the shape says."""


def checked_inputs(sent: Sequence[SentTensor], specs: Sequence[TensorSpec]) -> dict[str, FloatArray]:
    """The inputs by name, as arrays of their own.

    Raises:
        InvalidInputError: an input is missing, unknown or given twice, or its datatype, shape or content is wrong; names
            the input. Values are not looked at beyond being numbers.
    """
    known = {spec.name: spec for spec in specs}
    values: dict[str, FloatArray] = {}
    for tensor in sent:
        if tensor.name not in known:
            raise InvalidInputError(
                f"inputs must be among {_listed(known)}, got {shown(tensor.name)}; ask for the model's metadata"
            )
        if tensor.name in values:
            raise InvalidInputError(f"input {tensor.name!r} is given twice; send it once")
        values[tensor.name] = _array(tensor, known[tensor.name])
    missing = [spec.name for spec in specs if not spec.optional and spec.name not in values]
    if missing:
        raise InvalidInputError(f"input {missing[0]!r} is missing; send it as {DATATYPE}")
    return values


def checked_outputs(names: Sequence[str], specs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The names of requested outputs.

    Raises:
        InvalidInputError: one is unknown or requested twice.
    """
    known = {spec.name for spec in specs}
    for index, name in enumerate(names):
        if name not in known:
            listed = _listed([spec.name for spec in specs])
            raise InvalidInputError(f"outputs must be among {listed}, got {shown(name)}; ask for one of these")
        if name in names[:index]:
            raise InvalidInputError(f"output {name!r} is requested twice; request it once")
    return tuple(names)


def raw(values: FloatArray) -> bytes:
    """Little-endian float32 in row-major order."""
    return values.astype("<f4", copy=False).tobytes()


def shown(value: object) -> str:
    """What a client sent, short enough to repeat and with nothing that does not print."""
    text = ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _array(tensor: SentTensor, spec: TensorSpec) -> FloatArray:
    if tensor.datatype != DATATYPE:
        raise InvalidInputError(
            f"input {spec.name!r} must have datatype {DATATYPE}, got {shown(tensor.datatype)}; convert it to float32"
        )
    shape = _shape(tensor.shape, spec)
    count = math.prod(shape)
    if isinstance(tensor.content, bytes | memoryview):
        if len(tensor.content) != ITEM_BYTES * count:
            raise InvalidInputError(
                f"input {spec.name!r} of shape {list(shape)} must have {ITEM_BYTES * count} bytes of little-endian "
                f"float32, got {len(tensor.content)}; send as many numbers as the shape says"
            )
        # Copied: bytes inside a body need not be aligned.
        return np.frombuffer(tensor.content, "<f4").astype(np.float32).reshape(shape)
    return _from_numbers(_flat(tensor.content, shape, spec.name), spec.name).reshape(shape)


def _shape(sent: Sequence[int], spec: TensorSpec) -> tuple[int, ...]:
    fits = len(sent) == len(spec.shape) and all(
        type(size) is int and 1 <= size <= MAX_AXIS and wanted in (-1, size)
        for size, wanted in zip(sent, spec.shape, strict=True)
    )
    if not fits:
        raise InvalidInputError(
            f"input {spec.name!r} must have shape {list(spec.shape)}, where -1 stands for 1 or more, "
            f"got {shown(list(sent[:8]))}"
        )
    return tuple(sent)


def _flat(content: Sequence[object], shape: tuple[int, ...], name: str) -> Sequence[object]:
    if not any(isinstance(value, list) for value in content):
        if len(content) != math.prod(shape):
            raise InvalidInputError(
                f"input {name!r} of shape {list(shape)} must hold {math.prod(shape)} numbers, got {len(content)}; "
                "send as many numbers as the shape says"
            )
        return content
    level: list[object] = [content]
    for size in shape:
        deeper: list[object] = []
        for part in level:
            if not isinstance(part, list) or len(part) != size:
                raise InvalidInputError(
                    f"the data of input {name!r} must be nested as its shape {list(shape)} says, or be one flat list"
                )
            deeper += part
        level = deeper
    return level


def _from_numbers(values: Sequence[object], name: str) -> FloatArray:
    if not set(map(type, values)) <= {int, float}:
        index = next(index for index, value in enumerate(values) if type(value) not in (int, float))
        raise InvalidInputError(f"input {name!r} must hold numbers, got {shown(values[index])} as number {index}")
    try:
        numbers = np.array(values, np.float64)
    except OverflowError as error:
        raise InvalidInputError(f"input {name!r} must hold float32, got a whole number beyond it") from error
    # What is too large for float32 becomes infinite, which the policy refuses by the name of its channel.
    with np.errstate(over="ignore"):
        return numbers.astype(np.float32)


def _listed(names: Sequence[str] | dict[str, TensorSpec]) -> str:
    return ", ".join(repr(name) for name in names)
