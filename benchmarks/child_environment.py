"""What the processes of a measurement find in their environment."""

import os
from collections.abc import Mapping
from types import MappingProxyType

from server import READ_DIRECTLY

GRPC = "GRPC_EXPERIMENTS"


def child_environment(more: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """The variables of this process and `more`, but for what importing `server` has set: each child decides that for itself."""
    own = {name: value for name, value in os.environ.items() if (name, value) != (GRPC, READ_DIRECTLY)}
    return own | dict(more)
