"""The matrix products of a piece of code, recorded while it runs and then done again with nothing around them: its floor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {
    torch.ops.aten.mm.default: 0,
    torch.ops.aten.bmm.default: 0,
    torch.ops.aten.addmm.default: 1,
    torch.ops.aten.baddbmm.default: 1,
}
"""Operations that are matrix products, and where their first factor stands."""


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.factors: list[tuple[torch.Size, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func in PRODUCTS:
            first = PRODUCTS[func]
            self.factors.append((args[first].shape, args[first + 1].shape))
        return func(*args, **(kwargs or {}))


def products_of(call: Callable[[], object], device: torch.device) -> tuple[Callable[[], None], float]:
    """The same matrix products as the call does, forward and backward, in float32 on contiguous numbers.

    Returns:
        A call that does them, and their floating-point operations in billions.
    """
    with _Recorder() as recorder:
        call()
    factors = [(torch.ones(one, device=device), torch.ones(other, device=device)) for one, other in recorder.factors]
    operations = sum(2 * one.numel() * other.shape[-1] for one, other in factors)

    def multiply() -> None:
        for one, other in factors:
            _product(one, other)

    return multiply, operations / 1e9


def _product(one: Tensor, other: Tensor) -> Tensor:
    return one @ other if one.dim() == 2 else torch.bmm(one, other)
