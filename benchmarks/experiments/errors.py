"""What can go wrong in an experiment."""


class ExperimentError(RuntimeError):
    """An experiment that cannot be run, or results that cannot be read; the message says why and names the cure."""
