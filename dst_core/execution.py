"""How updates are computed: compiled or eager, and in which precision matrix products are done."""

import contextlib
import functools
import importlib.util
import math
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
Precision = Literal["float32", "bfloat16"]
PRECISIONS: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
CACHE = "TORCHINDUCTOR_CACHE_DIR"
WORTHWHILE = 1.3  # a lower precision or more threads must be this much faster in a matrix product to be chosen
WORTH_COMPILING_UPDATES = 3000  # compiling takes about a minute where nothing is cached
TRIALS = 9


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The same arithmetic in another form; results agree up to rounding."""

    compiled: bool = False
    """Fuse each part into static native code (torch.compile), on a GPU recorded as a CUDA graph; a part's first call then takes tens of
    seconds unless it is cached."""
    precision: Precision = "float32"
    """Of matrix products; sums of squares, returns and parameters stay as they are."""
    threads: int = 1
    """Of torch on the CPU."""
    device: str = "cpu"
    """Kind of device, cpu or cuda."""

    @classmethod
    def kept(cls, plain: dict[str, Any], *, device: torch.device) -> "Execution":
        """What a run chose once, on this machine: eager where nothing can compile it any more."""
        execution = cls(**{**plain, "device": device.type})
        return replace(execution, compiled=execution.compiled and can_compile(device))

    def begin_update(self) -> None:
        """Say that what the parts returned in earlier updates may be overwritten: the memory of a CUDA graph is used again."""
        if self.compiled and self.device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def prepare(self, part: Callable[P, R]) -> Callable[P, R]:
        """The part as it is to be called: always with tensors of the same shapes."""
        if self.compiled:
            for category in (DeprecationWarning, FutureWarning):  # torch's compiler complains of torch
                warnings.filterwarnings("ignore", category=category, module=r"torch\.")
            options: dict[str, Any] | None = {"triton.cudagraphs": True} if self.device == "cuda" else None
            part = torch.compile(  # type: ignore[call-overload]  # the overloads lack isolate_recompiles
                part, fullgraph=True, dynamic=False, options=options, isolate_recompiles=True
            )
        if self.precision == "float32":
            return part

        @functools.wraps(part)
        def lowered(*args: P.args, **kwargs: P.kwargs) -> R:
            with torch.autocast(self.device, dtype=PRECISIONS[self.precision]):
                return part(*args, **kwargs)

        return lowered


EAGER = Execution()


@contextlib.contextmanager
def sheltered(compiling: bool) -> Iterator[None]:
    """Keep Ctrl-C from the compilers that are started inside, if any are; this process sees it afterwards.

    A terminal sends it to every process it runs. A compiler that it ends fails the update, and what was learned until then is lost.
    """
    if not compiling:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def can_compile(device: torch.device) -> bool:
    """Whether there is what torch.compile needs: a C++ compiler, and Triton for CUDA."""
    compiler = any(shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++") if name)
    return compiler and (device.type != "cuda" or importlib.util.find_spec("triton") is not None)


def keep_compiled_code() -> None:
    """Let compiled code outlive the process: in the user's cache directory if that can be written, or where the environment says."""
    if CACHE in os.environ:
        return
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dst" / "compiled"
    with contextlib.suppress(OSError):  # torch then keeps it among temporary files
        directory.mkdir(parents=True, exist_ok=True)
        if os.access(directory, os.W_OK):
            os.environ[CACHE] = str(directory)


def choose_execution(
    *,
    compile_updates: Literal["auto", "off"],
    precision: Literal["auto"] | Precision,
    threads: int,
    updates: int,
    rows: int,
    width: int,
    device: torch.device,
) -> Execution:
    """What `auto` stands for on this machine, by measuring the update's largest kind of matrix product.

    Runs too short to repay compilation are eager, in float32, on one thread, and so the same everywhere.

    Args:
        compile_updates: whether to compile where it pays and can be done.
        precision: of matrix products.
        threads: of torch; 0 is auto.
        updates: in the whole run.
        rows: of the product, samples of a batch.
        width: of both its sides.
        device: of training.
    """
    long = updates >= WORTH_COMPILING_UPDATES
    if threads == 0:
        threads = faster_threads(rows=rows, width=width) if long and device.type == "cpu" else 1
    with using_threads(threads):
        if precision == "auto":
            precision = faster_precision(rows=rows, width=width, device=device) if long else "float32"
    compiled = compile_updates == "auto" and long and can_compile(device)
    return Execution(compiled=compiled, precision=precision, threads=threads, device=device.type)


@contextlib.contextmanager
def using_threads(threads: int) -> Iterator[None]:
    """So many threads of torch inside, as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def faster_threads(*, rows: int, width: int) -> int:
    """Twice as many threads, up to all cores, as long as that makes a matrix product clearly faster."""
    x, w = torch.zeros(rows, width), torch.zeros(width, width)
    best, best_s = 1, math.inf
    for threads in (1 << power for power in range((os.cpu_count() or 1).bit_length())):
        with using_threads(threads):
            taken_s = median_s(lambda: x @ w, x.device)
        if taken_s * WORTHWHILE > best_s:
            break
        best, best_s = threads, taken_s
    return best


def faster_precision(*, rows: int, width: int, device: torch.device) -> Precision:
    """bfloat16 where this machine multiplies matrices of this size clearly faster in it, by measurement."""
    times_s = {}
    for name, dtype in PRECISIONS.items():
        x, w = torch.zeros(rows, width, device=device), torch.zeros(width, width, device=device)
        times_s[name] = median_s(functools.partial(_multiply, x, w, dtype), device)
    return "bfloat16" if times_s["float32"] > WORTHWHILE * times_s["bfloat16"] else "float32"


def _multiply(x: Tensor, w: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) @ w.to(dtype)


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
