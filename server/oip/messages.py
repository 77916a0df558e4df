"""What the protocol says on both wires, under the names it gives things; encodings live with the wires."""

from collections.abc import Mapping
from dataclasses import dataclass

from protos.codec import FloatArray
from server.errors import InvalidInputError
from server.oip.tensors import SentTensor, shown

Parameter = bool | int | float | str

EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "statistics", "parameters")
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"
TIMEOUT = "timeout"
WITHOUT_EFFECT = frozenset(
    (
        "sequence_id",
        "sequence_start",
        "sequence_end",
        "priority",
        "binary_data_output",
        "triton_enable_empty_final_response",
    )
)
"""Parameters of a request that clients send and that change no number of the answer: a policy keeps nothing between
requests, what waits is taken by deadline, and the rest is about encodings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """One inference, decoded, its tensors unchecked."""

    id: str
    timeout_ns: int | None
    """After this time from receipt nothing is computed any more."""
    inputs: tuple[SentTensor, ...]
    outputs: tuple[str, ...]
    """In the order asked for; empty: all but the raw samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferReply:
    """The answer to one inference."""

    model_name: str
    model_version: str
    id: str
    outputs: Mapping[str, FloatArray]
    """In the order asked for."""


@dataclass(frozen=True, kw_only=True)
class ServerMetadata:
    """The server and the protocol extensions it serves."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TensorMetadata:
    """One tensor; -1 stands for an axis that the request chooses."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelMetadata:
    """A model's tensors; the version is the SHA-256 of the policy's bundle."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, kw_only=True)
class ModelInput:
    """An input; `dims` leave the batch out."""

    name: str
    data_type: str
    dims: tuple[int, ...]
    optional: bool


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """An output; `dims` leave the batch out."""

    name: str
    data_type: str
    dims: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelParameter:
    """A value of the configuration's parameters."""

    string_value: str


@dataclass(frozen=True, kw_only=True)
class ModelTransactionPolicy:
    """How many replies a request has; never decoupled: one."""

    decoupled: bool


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A model's configuration as far as it means something here."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    input: tuple[ModelInput, ...]
    output: tuple[ModelOutput, ...]
    parameters: dict[str, ModelParameter]
    model_transaction_policy: ModelTransactionPolicy


@dataclass(frozen=True, kw_only=True)
class StatisticDuration:
    """How often something was done, and the nanoseconds it took in all."""

    count: int
    ns: int


@dataclass(frozen=True, kw_only=True)
class InferStatistics:
    """Requests by outcome, and the stages of those that succeeded."""

    success: StatisticDuration
    fail: StatisticDuration
    queue: StatisticDuration
    compute_input: StatisticDuration
    compute_infer: StatisticDuration
    compute_output: StatisticDuration


@dataclass(frozen=True, kw_only=True)
class ModelStatistics:
    """What a loaded model has done since it was loaded."""

    name: str
    version: str
    last_inference: int
    """Milliseconds since the epoch; 0: none yet."""
    inference_count: int
    """Rows."""
    execution_count: int
    """Requests that were computed."""
    inference_stats: InferStatistics


@dataclass(frozen=True, kw_only=True)
class ModelStatisticsReply:
    """Statistics of one model or of all."""

    model_stats: tuple[ModelStatistics, ...]


@dataclass(frozen=True, kw_only=True)
class ModelIndex:
    """A model of the repository: READY, or UNAVAILABLE for a reason."""

    name: str
    version: str
    state: str
    reason: str


def timeout_ns(parameters: Mapping[str, Parameter]) -> int | None:
    """The time a request may wait, from its parameters; 0 and none mean without limit.

    Raises:
        InvalidInputError: a parameter is unknown, or `timeout` is no number of microseconds.
    """
    for name in parameters:
        if name != TIMEOUT and name not in WITHOUT_EFFECT:
            raise InvalidInputError(
                f"parameters of a request must be among {TIMEOUT!r}, {', '.join(map(repr, sorted(WITHOUT_EFFECT)))}, "
                f"got {shown(name)}; leave it out"
            )
    timeout_us = parameters.get(TIMEOUT, 0)
    if isinstance(timeout_us, bool) or not isinstance(timeout_us, int) or not 0 <= timeout_us < 1 << 63:
        raise InvalidInputError(
            f"parameter {TIMEOUT!r} must be a whole number of microseconds, at least 0, got {shown(timeout_us)}"
        )
    return 1000 * timeout_us or None


def check_tensor_parameters(tensor: str, parameters: Mapping[str, object], *known: str) -> None:
    """Refuses what a tensor's parameters ask for and no answer would honour.

    Raises:
        InvalidInputError: a parameter is not among `known`.
    """
    for name in parameters:
        if name in known:
            continue
        if name.startswith("shared_memory"):
            raise InvalidInputError(
                f"tensor {shown(tensor)} asks for shared memory, which is not served; send its content"
            )
        raise InvalidInputError(
            f"parameters of tensor {shown(tensor)} must be among {', '.join(map(repr, known)) or 'none'}, "
            f"got {shown(name)}; leave it out"
        )
