"""What can go wrong in a measurement."""


class BenchmarkError(RuntimeError):
    """A measurement that could not be made; the message says why."""
