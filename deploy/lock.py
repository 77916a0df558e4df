"""Resolve pyproject.toml in an empty environment and print exact versions, fit for every platform that the project supports."""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

TORCH = "torch==2.13.0"
GPU_WHEEL = "(sys_platform == 'linux' and platform_machine == 'x86_64') or (sys_platform == 'win32' and platform_machine == 'AMD64')"
CPU_WHEEL = "(sys_platform != 'linux' or platform_machine != 'x86_64') and (sys_platform != 'win32' or platform_machine != 'AMD64')"


def main() -> None:
    """Print the lock file."""
    project = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as directory:
        venv.create(directory, with_pip=True)
        pip = [str(Path(directory) / "bin" / "pip"), "--disable-pip-version-check"]
        subprocess.run(
            [*pip, "install", "--quiet", TORCH, f"{project}[train,serve,robot,tracing,bench,experiment,ray,dev]"],
            check=True,
        )
        frozen = subprocess.run(
            [*pip, "freeze", "--exclude", "dst-policy-server"], check=True, capture_output=True, text=True
        )
    print(
        "# Exact versions for `make setup`, made by `make lock`. Torch brings its CUDA libraries itself where its build has them."
    )
    for line in frozen.stdout.splitlines():
        name, _, version = line.partition("==")
        if name.startswith("nvidia-") or name in ("triton", "cuda-bindings", "cuda-pathfinder"):
            continue
        if name == "onnxruntime-gpu":
            print(f"onnxruntime-gpu=={version}; {GPU_WHEEL}")
            print(f"onnxruntime=={version}; {CPU_WHEEL}")
        elif name == "uvloop":
            print(f"{line}; sys_platform != 'win32'")
        else:
            print(f"{name}=={version.partition('+')[0]}")


if __name__ == "__main__":
    sys.exit(main())
