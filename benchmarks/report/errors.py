"""What can go wrong between results and their page."""


class ReportError(RuntimeError):
    """Results that no page can be made from; the message says what to do."""
