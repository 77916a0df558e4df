"""What a failed call means to the robot."""

import grpc

from sim_bridge.errors import RequestRefusedError, ServerOverloadedError, ServerUnreachableError

_UNREACHABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}

_TOO_LARGE = "larger than max"
"""What gRPC says of a message over the server's limit, with the same status as overload; trying again is no use."""


def error_of(error: grpc.RpcError, address: str) -> ServerUnreachableError | RequestRefusedError:
    """The robot-side error for a failed call to the server at `address`."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return RequestRefusedError(f"policy server at {address} refused with UNKNOWN: {error}")
    status, details = error.code(), error.details() or "no details"
    if status in _UNREACHABLE:
        return ServerUnreachableError(
            f"policy server at {address} must answer in time, got {status.name} ({details}); "
            "check that it runs and that the network reaches it"
        )
    refusal = f"policy server at {address} refused with {status.name}: {details}"
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE not in details:
        retry_after_ms = _retry_after_ms(error)
        hint = f"; try again in {retry_after_ms} ms" if retry_after_ms else ""
        return ServerOverloadedError(refusal + hint, retry_after_ms=retry_after_ms)
    return RequestRefusedError(refusal)


def _retry_after_ms(error: grpc.Call | grpc.aio.AioRpcError) -> int:
    text = str(dict(error.trailing_metadata() or ()).get("retry-after-ms", ""))
    return int(text) if text.isascii() and text.isdigit() else 0
