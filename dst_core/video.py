"""Episodes as MP4 files, also on machines without a display."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import imageio.v3 as imageio
import numpy as np

from dst_core.errors import TrainingError
from sim_bridge.tasks import make_task

CODEC = "libx264"


class Video:
    """A video file being written, frame by frame, in this process: a Ctrl-C on the terminal reaches no encoder.

    Args:
        path: MP4 file; its directory is made.
        period_s: seconds between two frames.

    Raises:
        OSError: if it cannot be written.
    """

    def __init__(self, path: Path, *, period_s: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = imageio.imopen(path, "w", plugin="pyav")
        self._file.init_video_stream(CODEC, fps=1.0 / period_s)

    def write(self, frame: object) -> None:
        """Append what a task's `render` gave, (H, W, 3); the codec wants even sizes, so an odd last row or column is left out."""
        picture = np.asarray(frame, np.uint8)
        height, width = (size // 2 * 2 for size in picture.shape[:2])
        self._file.write_frame(np.ascontiguousarray(picture[:height, :width]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def require_rendering(environment: str, perturbations: Sequence[str]) -> None:
    """Make sure that the task can be rendered here, by rendering it; without a display MuJoCo is told to use EGL.

    Raises:
        TrainingError: if it cannot, naming the cause and the remedy.
    """
    headless = sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if headless and not os.environ.get("MUJOCO_GL"):
        os.environ["MUJOCO_GL"] = "egl"
    env: Any = make_task(environment, perturbations=perturbations, render_mode="rgb_array")
    try:
        env.reset(seed=0)
        frame = env.render()
    except Exception as error:
        raise TrainingError(
            f"--video needs pictures of {environment}, which cannot be rendered here: {error} "
            f"(MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}). For MuJoCo tasks without a display install Mesa's EGL "
            "(Debian: libegl1) or OSMesa (libosmesa6) and set MUJOCO_GL to egl or osmesa; or leave --video out"
        ) from error
    finally:
        env.close()
    if not (isinstance(frame, np.ndarray) and frame.ndim == 3):
        raise TrainingError(f"--video needs pictures of {environment}, but it renders none; leave --video out")
