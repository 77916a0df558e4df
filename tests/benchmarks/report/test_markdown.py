"""Numbers as people read them."""

import math

import pytest

from benchmarks.report.markdown import number, table, with_bounds, with_interval
from benchmarks.report.statistics import Bounds, Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9321.4, "9321"),
        (932.14, "932"),
        (-93.21, "-93.2"),
        (9.3214, "9.32"),
        (0.093214, "0.0932"),
        (0.00001, "0.0000"),
        (-0.00001, "0.0000"),
        (0.0, "0.00"),
        (math.nan, "-"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
    ],
)
def test_number_has_three_significant_digits_and_no_exponent(value: float, text: str) -> None:
    assert number(value) == text


def test_interval_has_the_decimals_of_its_largest_number_and_is_left_out_where_there_is_none() -> None:
    assert with_interval(Estimate(9.876, 3.21, 123.4)) == "10 (3 to 123)"
    assert with_interval(Estimate(9.876, None, None)) == "9.88"


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        (Bounds(0.5, 0.5, 0.4, 0.6), "0.50 (0.40 to 0.60)"),
        (Bounds(0.0, 0.4, 0.0, 0.6), "below 0.40 (0.00 to 0.60)"),
        (Bounds(2.0, math.inf, 1.5, math.inf), "above 2.00 (1.50 to ∞)"),
        (Bounds(0.0, math.inf, None, None), "open"),
        (Bounds(0.3, 0.4, 0.2, 0.6), "0.30 to 0.40 (0.20 to 0.60)"),
        (Bounds(math.inf, math.inf, math.inf, math.inf), "∞ (∞ to ∞)"),
        (Bounds(0.0, 0.0, 0.0, 0.0), "0.00 (0.00 to 0.00)"),
    ],
)
def test_bounds_say_what_is_known(bounds: Bounds, text: str) -> None:
    assert with_bounds(bounds) == text


def test_text_does_not_break_its_table() -> None:
    assert table(["a", "b"], [["x|y", "1\n2"]]).splitlines() == ["| a | b |", "| :-- | --: |", r"| x\|y | 1 2 |"]
