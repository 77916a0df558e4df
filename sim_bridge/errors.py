"""What can go wrong on the robot side, as one small exception tree."""


class SimBridgeError(Exception):
    """Root of every error that `sim_bridge` raises on purpose."""


class TaskError(SimBridgeError, ValueError):
    """A task that does not exist, cannot be built, or is not flat continuous control."""
