"""How updates are computed: compiled or eager, and in which precision matrix products are done."""

import functools
import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
Precision = Literal["float32", "bfloat16"]
PRECISIONS: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CACHE = "TORCHINDUCTOR_CACHE_DIR"
WORTHWHILE = 1.3  # a lower precision must be this much faster in a matrix product to be chosen
TRIALS = 9


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The same arithmetic in another form; results agree up to rounding."""

    compiled: bool = False
    """Fuse each part into static native code (torch.compile); a part's first call then takes tens of seconds unless it is cached."""
    precision: Precision = "float32"
    """Of matrix products; sums of squares, returns and parameters stay as they are."""

    def prepare(self, part: Callable[P, R]) -> Callable[P, R]:
        """The part as it is to be called: always with tensors of the same shapes."""
        if self.compiled:
            for category in (DeprecationWarning, FutureWarning):  # torch's compiler complains of torch
                warnings.filterwarnings("ignore", category=category, module=r"torch\.")
            part = torch.compile(part, fullgraph=True, dynamic=False)
        if self.precision == "float32":
            return part

        @functools.wraps(part)
        def lowered(*args: P.args, **kwargs: P.kwargs) -> R:
            device = next(value.device for value in args if isinstance(value, Tensor))
            with torch.autocast(device.type, dtype=PRECISIONS[self.precision]):
                return part(*args, **kwargs)

        return lowered


EAGER = Execution()


def can_compile(device: torch.device) -> bool:
    """Whether there is what torch.compile needs: a C++ compiler, or Triton on CUDA."""
    if device.type == "cuda":
        return torch.utils._triton.has_triton()  # type: ignore[no-untyped-call]
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++"))


def keep_compiled_code() -> None:
    """Let compiled code outlive the process, in the user's cache directory unless the environment says otherwise."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault(CACHE, str(home / "dst" / "compiled"))


def faster_precision(*, rows: int, width: int, device: torch.device) -> Precision:
    """bfloat16 where this machine multiplies matrices of this size clearly faster in it, by measurement."""
    times_s = {}
    for name, dtype in PRECISIONS.items():
        x, w = torch.zeros(rows, width, device=device), torch.zeros(width, width, device=device)
        times_s[name] = median_s(lambda x=x, w=w, dtype=dtype: x.to(dtype) @ w.to(dtype), device)
    return "bfloat16" if times_s["float32"] > WORTHWHILE * times_s["bfloat16"] else "float32"


def median_s(call: Callable[[], object], device: torch.device, *, trials: int = TRIALS) -> float:
    """Median duration of a call, after one that does not count."""
    durations = []
    for _ in range(trials + 1):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - began)
    return sorted(durations[1:])[trials // 2]
