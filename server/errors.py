"""What can go wrong while serving; each wire maps these to its own status codes.

Messages are written for the client: requirement, what came, remedy. Causes and tracebacks stay in the log.
"""

from typing import ClassVar, Literal

Refusal = Literal["superseded", "expired", "rejected", "failed", "overloaded"]


class ServingError(Exception):
    """Anything this server refuses or fails to do."""

    counted_as: ClassVar[Refusal] = "rejected"
    """What the metrics call an observation that got this instead of a decision."""


class BundleError(ServingError, ValueError):
    """A bundle is refused: names the file, the reason and the cure."""


class ProviderError(ServingError):
    """The execution provider that was demanded is not available."""


class AddressError(ServingError, ValueError):
    """The server cannot listen where it was told to."""


class InvalidInputError(ServingError, ValueError):
    """A request does not fit the contract: names the field."""


class UnknownPolicyError(ServingError, ValueError):
    """No loaded policy has the requested name."""


class ContractMismatchError(ServingError, ValueError):
    """The client was built for other names, order, units, limits or period than the policy's."""


class NotReadyError(ServingError):
    """The policy was unloaded, or is not loaded yet."""


class ExpiredError(ServingError):
    """The time a client gave had passed before its observation was computed."""

    counted_as = "expired"


class OverloadedError(ServingError):
    """More work is waiting, or asked for, than the server accepts."""

    counted_as = "overloaded"

    def __init__(self, message: str, *, retry_after_ms: int) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class ShuttingDownError(ServingError):
    """The server finishes what it has begun and accepts nothing new."""


class InferenceError(ServingError):
    """The policy produced no usable output for a valid observation."""

    counted_as = "failed"
