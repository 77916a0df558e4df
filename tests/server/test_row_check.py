import numpy as np
import pytest

from server.errors import InferenceError
from server.manifest import ChannelLimits
from server.row_check import LIMIT_SLACK, RowCheck
from server.row_layout import RowLayout

LAYOUT = RowLayout({"action": (2,), "return_mean": (), "gradient_mean": (2,)})
ACTION = (
    ChannelLimits(name="a", unit="Nm", low=-1.0, high=2.0),
    ChannelLimits(name="b", unit="Nm", low=None, high=None),
)
GOOD = (0.5, 1e30, -3.0, 1e-30, 3e38)
LARGEST = float(np.finfo(np.float32).max)


def rows(count, place, value):
    made = np.tile(np.float32(GOOD), (count, 1))
    made[-1, place] = value
    return made


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_is_found_wherever_it_stands(count, place, value):
    with pytest.raises(InferenceError, match=f"gave a {LAYOUT.name_at(place)} that is not finite"):
        RowCheck(LAYOUT, ACTION).check(rows(count, place, value))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("place", "value"), [(0, -1.0), (0, 2.0), (1, LARGEST), (1, -LARGEST), (4, LARGEST), (2, -LARGEST)]
)
def test_what_lies_at_a_limit_is_left_as_it_is(count, place, value):
    given = rows(count, place, value)
    kept = given.copy()
    RowCheck(LAYOUT, ACTION).check(given)
    np.testing.assert_array_equal(given, kept)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("value", "limit"), [(2.0 * (1 + 0.9 * LIMIT_SLACK), 2.0), (-1.0 - LIMIT_SLACK, -1.0)])
def test_rounding_outside_a_limit_is_set_to_it(count, value, limit):
    given = rows(count, 0, value)
    assert given[-1, 0] != limit
    RowCheck(LAYOUT, ACTION).check(given)
    np.testing.assert_array_equal(given, rows(count, 0, limit))


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("value", [2.001, -1.001])
def test_an_action_outside_its_limits_is_refused_by_channel(count, value):
    with pytest.raises(InferenceError, match=r"for 'a' at index 0, outside \[-1.0, 2.0\] Nm"):
        RowCheck(LAYOUT, ACTION).check(rows(count, 0, value))


def test_all_candidates_of_one_observation_are_looked_at():
    law = RowLayout({"return_mean": (), "gradient_mean": (2,)})
    given = np.ones((1, 4, 3), np.float32)
    RowCheck(law, ()).check(given)
    given[0, 3, 0] = np.nan
    with pytest.raises(InferenceError, match="return_mean"):
        RowCheck(law, ()).check(given)
