"""What a robot may be given: every number finite, actions within their limits."""

import math
from collections.abc import Sequence
from operator import ge, le

import numpy as np

from protos.codec import FloatArray
from server.errors import InferenceError
from server.manifest import ChannelLimits, limit
from server.row_layout import RowLayout

LIMIT_SLACK = 1e-5
"""Share of its limit that an action may lie outside by rounding; it is then set to the limit."""


class RowCheck:
    """Of rows of one layout.

    Args:
        layout: of the rows.
        action: limits of the layout's `action`; none where it has no such output.
    """

    def __init__(self, layout: RowLayout, action: Sequence[ChannelLimits]) -> None:
        self._layout = layout
        self._channels = action
        self._low, self._high, self._slack = limits(action)
        largest = np.finfo(np.float32).max
        # Of the whole row, so that one comparison tells of a good one all that is asked.
        self._least, self._most = (np.full(layout.width, end, np.float32) for end in (-largest, largest))
        if action:
            place = layout.places["action"]
            self._least[place], self._most[place] = np.maximum(self._low, -largest), np.minimum(self._high, largest)
        self._least_one, self._most_one = self._least.tolist(), self._most.tolist()

    def check(self, rows: FloatArray) -> None:
        """Sets actions (..., width) that lie outside their limits by rounding alone to the limit.

        Raises:
            InferenceError: a number is not finite or an action outside its limits; names it.
        """
        if self._within(rows):
            return
        finite = np.isfinite(rows)
        if not finite.all():
            bad = self._layout.name_at(int(np.argwhere(~finite)[0][-1]))
            raise InferenceError(f"the policy gave a {bad} that is not finite; the robot must not use it")
        actions = rows[..., self._layout.places["action"]]
        outside = (actions < self._low - self._slack) | (actions > self._high + self._slack)
        if outside.any():
            row, index = map(int, np.argwhere(outside)[0])
            channel = self._channels[index]
            raise InferenceError(
                f"the policy gave action {actions[row, index]} for {channel.name!r} at index {index}, outside "
                f"[{self._low[index]}, {self._high[index]}] {channel.unit}; the robot must not use it"
            )
        np.clip(actions, self._low, self._high, out=actions)

    def _within(self, rows: FloatArray) -> bool:
        """Whether all numbers are finite and within limits; NaN is within none."""
        if rows.size > self._layout.width:
            return bool(((rows >= self._least) & (rows <= self._most)).all())
        # The one row of a control tick finds the caches cold, and then numpy's way to a comparison is long: 19 µs against 6.
        row = rows.ravel().tolist()
        return all(map(le, self._least_one, row)) and all(map(ge, self._most_one, row))


def limits(channels: Sequence[ChannelLimits]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Lower limit, upper limit and rounding slack of each channel, (A,) each; infinite where unbounded."""
    low = np.array([limit(channel.low, -math.inf) for channel in channels], np.float32)
    high = np.array([limit(channel.high, math.inf) for channel in channels], np.float32)
    size = np.maximum(np.where(np.isfinite(low), np.abs(low), 0), np.where(np.isfinite(high), np.abs(high), 0))
    return low, high, (LIMIT_SLACK * size).astype(np.float32)
