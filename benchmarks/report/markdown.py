"""Numbers and tables as the page writes them."""

import math
from collections.abc import Iterable, Sequence

from benchmarks.report.statistics import Bounds, Estimate

NOTHING = "-"


def number(value: float, *, scale: float | None = None) -> str:
    """Three significant digits, never in exponents, at most four decimals; all digits left of the point.

    Args:
        value: to write.
        scale: the magnitude that decides on the decimals; its own if not given.
    """
    if math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    size = abs(value if scale is None else scale)
    decimals = 2 if size == 0 or math.isinf(size) else min(4, max(0, 2 - math.floor(math.log10(size))))
    text = f"{value:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def with_interval(estimate: Estimate, *, scale: float | None = None) -> str:
    """The number and its interval, written with the decimals of the largest of them unless a scale is given."""
    value, low, high = estimate
    if scale is None:
        scale = max((abs(x) for x in (value, low, high) if x is not None and math.isfinite(x)), default=0.0)
    text = number(value, scale=scale)
    return (
        text if low is None or high is None else f"{text} ({number(low, scale=scale)} to {number(high, scale=scale)})"
    )


def with_bounds(bounds: Bounds) -> str:
    """The ratio, or the bound known of it, and its interval."""
    least, most, low, high = bounds
    if least == most:
        text = number(most, scale=1.0)
    elif least == 0 and math.isinf(most):
        text = "open"
    elif math.isinf(most):
        text = f"above {number(least, scale=1.0)}"
    elif least == 0:
        text = f"below {number(most, scale=1.0)}"
    else:
        text = f"{number(least, scale=1.0)} to {number(most, scale=1.0)}"
    return text if low is None or high is None else f"{text} ({number(low, scale=1.0)} to {number(high, scale=1.0)})"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """A table whose first `left` columns are text and whose others are numbers."""
    marks = [":--" if index < left else "--:" for index in range(len(header))]
    lines = [header, marks, *([cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Text that does not end its cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def folded(summary: str, content: str) -> str:
    """Content that is shown on a click."""
    return f"<details>\n<summary>{summary}</summary>\n\n{content}\n\n</details>"


def bullets(lines: Iterable[str]) -> str:
    """A list."""
    return "\n".join(f"- {line}" for line in lines)
