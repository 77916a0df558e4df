"""An environment of its own for every peer, made once and kept; torch is let into none."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from benchmarks.errors import BenchmarkError

FORBIDDEN = frozenset({"torch", "tensorflow", "jax"})
"""Gigabytes that no peer needs to serve an ONNX file."""
READY = "ready"
PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")


def default_directory() -> Path:
    """Where environments are kept: `~/.cache/dst/peers`, or below `XDG_CACHE_HOME`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dst" / "peers"


def environment(directory: Path, name: str, dependencies: Sequence[str]) -> Path:
    """The Python of an environment with these packages and the ONNX Runtime of this one; made where it is not there yet.

    Raises:
        BenchmarkError: if they cannot be installed here, or would bring in one of `FORBIDDEN`.
    """
    wanted = [*dependencies, f"onnxruntime=={onnxruntime.__version__}"]
    said = "\n".join([*wanted, *map(str, sys.version_info[:2])])
    place = directory / f"{name}-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    python = place / "bin" / "python"
    if (place / READY).exists():
        return python
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        _run([sys.executable, "-m", "venv", str(place)])
        _refuse_forbidden(python, wanted)
        _run([str(python), *PIP, "install", "--quiet", *wanted])
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    (place / READY).touch()
    return python


def _refuse_forbidden(python: Path, wanted: Sequence[str]) -> None:
    with tempfile.NamedTemporaryFile("r", suffix=".json", encoding="utf-8") as report:
        _run([str(python), *PIP, "install", "--quiet", "--dry-run", "--report", report.name, *wanted])
        names = {package["metadata"]["name"].lower() for package in json.load(report)["install"]}
    if found := names & FORBIDDEN:
        raise BenchmarkError(
            f"it would install {', '.join(sorted(found))}, gigabytes that serving an ONNX file does not need"
        )


def _run(command: Sequence[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        lines = [line for line in ended.stderr.splitlines() if line.strip()]
        reason = next(
            (line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no reason given"
        )
        raise BenchmarkError(f"it cannot be installed here: {reason[:300]}")
