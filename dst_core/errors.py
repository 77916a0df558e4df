"""What can go wrong between a user and the training core; every message names the cure."""


class TrainingError(ValueError):
    """A run cannot start, continue or be read."""


class DivergedError(RuntimeError):
    """A loss is no longer a finite number."""


class ExportError(ValueError):
    """A bundle cannot be written, or its graphs do not give what torch gives."""


class CalibrationError(ValueError):
    """A law cannot be calibrated as asked, or its calibration cannot be read."""
