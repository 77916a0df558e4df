"""The numbers of a run as they come: one JSON object per line for programs, TensorBoard for people."""

import json
import math
import time
from pathlib import Path
from typing import Literal

from torch.utils.tensorboard import SummaryWriter

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_DIRECTORY = "tensorboard"
Kind = Literal["episode", "execution", "update", "evaluation", "forecast", "warning"]
Value = float | str | None | tuple[float, ...]


class Metrics:
    """`metrics.jsonl` and TensorBoard's logs of one run.

    Every line holds `step` (environment steps so far), `kind`, the numbers of that kind in the user's units, and `time` (seconds since
    1970). Numbers that do not exist or are not finite are null.

    Args:
        directory: of the run.
        step: the run goes on from here.
        size: bytes of `metrics.jsonl` that belong to the run up to this step; what a killed process wrote beyond them is dropped.

    Raises:
        OSError: if the files cannot be written.
    """

    def __init__(self, directory: Path, *, step: int, size: int) -> None:
        path = directory / METRICS_FILE
        kept = path.read_bytes()[:size] if path.exists() else b""
        kept = kept[: kept.rfind(b"\n") + 1]  # after a power failure even the part that counts may be torn
        path.touch()
        with path.open("r+b") as file:
            file.truncate(len(kept))
        self.size = len(kept)
        self._lines = path.open("ab")
        self._board = SummaryWriter(str(directory / TENSORBOARD_DIRECTORY), purge_step=step + 1 if size else 0)

    def write(self, kind: Kind, step: int, **values: Value) -> None:
        """Append one line, and its numbers to TensorBoard under `kind/name`."""
        line = {"step": step, "kind": kind, **{name: _json(value) for name, value in values.items()}}
        encoded = json.dumps({**line, "time": round(time.time(), 3)}, allow_nan=False).encode() + b"\n"
        self._lines.write(encoded)
        self._lines.flush()
        self.size += len(encoded)
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Write what is left."""
        self._lines.close()
        self._board.close()


def _json(value: Value) -> Value | list[float]:
    if isinstance(value, tuple):
        return list(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
