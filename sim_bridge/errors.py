"""What can go wrong on the robot side, as one small exception tree."""


class SimBridgeError(Exception):
    """Root of every error that `sim_bridge` raises on purpose."""


class TaskError(SimBridgeError, ValueError):
    """A task that does not exist, cannot be built, or is not flat continuous control."""


class DriveConfigError(SimBridgeError, ValueError):
    """A setting of the drive command is out of its range."""


class ServerUnreachableError(SimBridgeError, ConnectionError):
    """No policy server answered at the address in time."""


class RequestRefusedError(SimBridgeError, ValueError):
    """The policy server answered that it will not serve this request; the message is the server's own."""


class ServerOverloadedError(RequestRefusedError):
    """The policy server has more work than it can do in time, or cannot keep the promise that was asked for."""

    def __init__(self, message: str, *, retry_after_ms: int = 0) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms
        """When to try again, milliseconds from now; 0 where the server did not say."""


class ContractMismatchError(SimBridgeError, ValueError):
    """Robot and policy disagree about names, order, units, limits or period."""


class RecordError(SimBridgeError, ValueError):
    """A record cannot be written or read."""
