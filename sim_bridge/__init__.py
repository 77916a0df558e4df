"""The robot side: tasks, client, guard, control loop, recorder."""

import os

READ_DIRECTLY = "-event_engine_client,-event_engine_listener"
"""For gRPC, before it is imported: a socket is read by the thread that waits for what it brings. Its event engine would hand that on
through three threads of its own, each asleep until it is woken. Where the variable is set already, that holds."""
os.environ.setdefault("GRPC_EXPERIMENTS", READ_DIRECTLY)
