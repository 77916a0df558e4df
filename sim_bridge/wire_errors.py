"""What a failed call means to the robot."""

import grpc

from sim_bridge.errors import RequestRefusedError, ServerUnreachableError

_UNREACHABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}


def error_of(error: grpc.RpcError, address: str) -> ServerUnreachableError | RequestRefusedError:
    """The robot-side error for a failed call to the server at `address`."""
    status = error.code() if isinstance(error, grpc.Call) else grpc.StatusCode.UNKNOWN
    details = (error.details() if isinstance(error, grpc.Call) else str(error)) or "no details"
    if status in _UNREACHABLE:
        return ServerUnreachableError(
            f"policy server at {address} must answer in time, got {status.name} ({details}); "
            "check that it runs and that the network reaches it"
        )
    return RequestRefusedError(f"policy server at {address} refused with {status.name}: {details}")
