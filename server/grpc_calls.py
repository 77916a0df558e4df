"""What every gRPC service does with a call: read who asks and until when, and refuse it by its status code."""

from typing import Any, Never

import grpc
import grpc.aio

from server.core import Core
from server.errors import (
    ContractMismatchError,
    ExpiredError,
    InferenceError,
    InvalidInputError,
    NotReadyError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
    UnknownPolicyError,
)
from server.served_policy import Asking

Context = grpc.aio.ServicerContext[Any, Any]
STATUS_CODES: dict[type[ServingError], grpc.StatusCode] = {
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownPolicyError: grpc.StatusCode.NOT_FOUND,
    ContractMismatchError: grpc.StatusCode.FAILED_PRECONDITION,
    ExpiredError: grpc.StatusCode.DEADLINE_EXCEEDED,
    OverloadedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    NotReadyError: grpc.StatusCode.FAILED_PRECONDITION,
    ShuttingDownError: grpc.StatusCode.UNAVAILABLE,
    InferenceError: grpc.StatusCode.INTERNAL,
}


def asking_of(context: Context, core: Core) -> Asking:
    """Who asks, received now, until the call's deadline."""
    received_ns = core.clock()
    remaining_s = context.time_remaining()
    deadline_ns = None if remaining_s is None else received_ns + int(remaining_s * 1e9)
    return Asking(received_ns=received_ns, deadline_ns=deadline_ns, client=_client_of(context))


def _client_of(context: Context) -> str:
    """Who asks: the connection, and where gRPC names none, as of a Unix socket, what its channel says of itself."""
    peer = context.peer()
    if not peer.startswith("unix:"):
        return peer
    return f"{peer} {dict(context.invocation_metadata() or ()).get('user-agent', '')!r}"


async def abort(context: Context, error: ServingError) -> Never:
    """Ends the call with the status of the error and its message; never with a traceback."""
    metadata = (("retry-after-ms", str(error.retry_after_ms)),) if isinstance(error, OverloadedError) else ()
    await context.abort(STATUS_CODES[type(error)], str(error), metadata)
