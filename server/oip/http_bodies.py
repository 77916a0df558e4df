"""The protocol's inference over HTTP: JSON, with tensors in it or, by the binary tensor extension, behind it."""

import json
import zlib
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, FailFast, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError

from protos.codec import FloatArray
from server.errors import InvalidInputError
from server.oip.messages import InferReply, InferRequest, check_tensor_parameters, timeout_ns
from server.oip.tensors import DATATYPE, SentTensor, raw, shown
from server.request_body import Few, RequestBody, told

HEADER_LENGTH = "Inference-Header-Content-Length"
SIZE, BINARY, ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
WINDOW_BITS = {"gzip": 31, "deflate": 15}

Parsed = TypeVar("Parsed", bound=BaseModel)
Parameters = Annotated[dict[str, StrictBool | StrictInt | StrictFloat | StrictStr], Few]
NONE: Any = Field(default_factory=dict)


class InferInputBody(RequestBody):
    """One input tensor; its data stands here or, where `binary_data_size` says so, behind the JSON."""

    name: StrictStr
    datatype: Annotated[StrictStr, Field(description=f"{DATATYPE}.")]
    shape: Annotated[list[StrictInt], FailFast()]
    parameters: Annotated[Parameters, NONE]
    data: Annotated[list[Any] | None, Field(description="Row-major numbers, flat or nested as the shape says.")] = None


class InferRequestedOutputBody(RequestBody):
    """One output that the reply shall hold; with `binary_data` behind its JSON."""

    name: StrictStr
    parameters: Annotated[Parameters, NONE]


class InferBody(RequestBody):
    """One inference."""

    id: StrictStr = ""
    parameters: Annotated[
        Parameters,
        NONE,
        Field(description="`timeout` in microseconds; `binary_data_output` for outputs behind the JSON."),
    ]
    inputs: Annotated[
        list[InferInputBody],
        FailFast(),
        Field(
            description="`observation` [rows, channels], and to assess candidates `action` [rows, candidates, channels]."
        ),
    ]
    outputs: Annotated[
        list[InferRequestedOutputBody],
        FailFast(),
        Field(default_factory=list, description="Empty: all but the raw samples, action first."),
    ]


class InferOutputReply(BaseModel):
    """One output tensor."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[float] | None = None


class InferBodyReply(BaseModel):
    """The answer to one inference."""

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[InferOutputReply]


class Exchange:
    """One request's body, and how its reply wants to be encoded."""

    def __init__(self, body: bytes, *, header_length: str | None, encoding: str | None, max_bytes: int) -> None:
        self._body = body
        self._header_length = header_length
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._asked: InferBody | None = None

    def decoded(self) -> InferRequest:
        """The request without its encoding.

        Raises:
            InvalidInputError: names the field, header or tensor.
        """
        body = self._body if self._encoding is None else decompressed(self._body, self._encoding, self._max_bytes)
        length = len(body) if self._header_length is None else _length(self._header_length, len(body))
        asked = parsed(body[:length], InferBody)
        inputs, behind = [], memoryview(body)[length:]
        for tensor in asked.inputs:
            check_tensor_parameters(tensor.name, tensor.parameters, SIZE)
            sent, behind = _sent(tensor, behind)
            inputs.append(sent)
        if behind:
            raise InvalidInputError(
                f"the body has {len(behind)} bytes more than its inputs say; state each size in {SIZE!r}"
            )
        for output in asked.outputs:
            check_tensor_parameters(output.name, output.parameters, BINARY)
            _flag(output.parameters, BINARY)
        _flag(asked.parameters, ALL_BINARY)
        self._asked = asked
        return InferRequest(
            id=asked.id,
            timeout_ns=timeout_ns(asked.parameters),
            inputs=tuple(inputs),
            outputs=tuple(output.name for output in asked.outputs),
        )

    def encoded(self, reply: InferReply) -> tuple[bytes, int | None]:
        """The body of the reply, and the bytes of its JSON where tensors follow."""
        asked = self._asked
        assert asked is not None, "a reply is encoded as its request asked"
        wanted = {output.name: _flag(output.parameters, BINARY) for output in asked.outputs}
        default = _flag(asked.parameters, ALL_BINARY) or False
        outputs, behind = [], []
        for name, values in reply.outputs.items():
            chosen = wanted.get(name)
            if default if chosen is None else chosen:
                behind.append(raw(values))
                outputs.append(_output(name, values, parameters={SIZE: len(behind[-1])}))
            else:
                outputs.append(_output(name, values, data=values.ravel().tolist()))
        content: dict[str, Any] = {"model_name": reply.model_name, "model_version": reply.model_version}
        if reply.id:
            content["id"] = reply.id
        header = json.dumps(content | {"outputs": outputs}, separators=(",", ":"), allow_nan=False).encode()
        return b"".join((header, *behind)), len(header) if behind else None


def parsed(body: bytes, model: type[Parsed]) -> Parsed:
    """A JSON body, whatever its content type: clients of this protocol state none.

    Raises:
        InvalidInputError: no JSON, or not of that form; names the field.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidInputError(told(problems)) from error


def decompressed(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """A compressed body, of which never more than `max_bytes` are unpacked.

    Raises:
        InvalidInputError: another encoding, no such data, or too much of it.
    """
    if encoding not in WINDOW_BITS:
        raise InvalidInputError(
            f"Content-Encoding must be {' or '.join(WINDOW_BITS)}, got {shown(encoding)}; send the body as it is"
        )
    unpacking = zlib.decompressobj(WINDOW_BITS[encoding])
    try:
        unpacked = unpacking.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise InvalidInputError(f"the body must be {encoding} data, as its Content-Encoding says: {error}") from error
    if len(unpacked) > max_bytes:
        raise InvalidInputError(f"the body must have at most {max_bytes} bytes unpacked")
    if not unpacking.eof or unpacking.unused_data:
        raise InvalidInputError(f"the body must be one whole {encoding} stream; it is truncated or has bytes behind it")
    return unpacked


def _length(header: str, available: int) -> int:
    # Twelve digits are more than any body has, and few enough to read.
    length = int(header) if header.isascii() and header.isdigit() and len(header) <= 12 else -1
    if not 0 <= length <= available:
        raise InvalidInputError(
            f"{HEADER_LENGTH} must be the bytes of the body's JSON, 0 to {available}, got {shown(header)}"
        )
    return length


def _sent(tensor: InferInputBody, behind: memoryview) -> tuple[SentTensor, memoryview]:
    """A tensor, and what of the body lies behind it."""
    size = tensor.parameters.get(SIZE)
    content: list[Any] | memoryview
    if size is None:
        if tensor.data is None:
            raise InvalidInputError(f"input {shown(tensor.name)} must hold data or state {SIZE!r}; send its numbers")
        content = tensor.data
    else:
        if tensor.data is not None:
            raise InvalidInputError(f"input {shown(tensor.name)} must hold data or state {SIZE!r}, got both")
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(behind):
            raise InvalidInputError(
                f"{SIZE} of input {shown(tensor.name)} must be a number of bytes behind the JSON, where {len(behind)} "
                f"are left, got {shown(size)}; set {HEADER_LENGTH} to the bytes of the JSON"
            )
        content, behind = behind[:size], behind[size:]
    sent = SentTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape, content=content)
    return sent, behind


def _flag(parameters: dict[str, bool | int | float | str], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidInputError(f"parameter {name!r} must be true or false, got {shown(value)}")
    return value


def _output(name: str, values: FloatArray, **content: object) -> dict[str, object]:
    return {"name": name, "datatype": DATATYPE, "shape": values.shape, **content}
