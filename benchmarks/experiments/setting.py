"""What a run ran on: versions and machine."""

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Final

from benchmarks.timing import machine
from dst_core.checkpoint import write_json

LIBRARIES: Final = ("torch", "numpy", "gymnasium", "mujoco", "dst-policy-server")


def write_setting(path: Path) -> None:
    """Write this machine's setting beside a run; its directory is made.

    Raises:
        OSError: if the directory cannot be made.
        TrainingError: if the file cannot be written.
    """
    here = machine()
    versions = {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"versions": versions, "machine": f"{here['processor']}, {here['cores']} cores"})


def read_setting(path: Path) -> tuple[dict[str, str], str]:
    """Versions and machine of a run; empty where it did not come so far as to write them."""
    try:
        setting = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}, ""
    return setting["versions"], setting["machine"]
