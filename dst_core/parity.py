"""Does an exported graph say what torch says? Asked before a bundle is published."""

import copy
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dst_core.errors import ExportError
from dst_core.graphs import UncertaintyGraph

RELATIVE = 1e-4
BATCHES = (1, 3, 8)


def check_graph(path: Path, graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str]) -> None:
    """Compare ONNX Runtime with torch at batch 1, 3 and 8, and on all rows given.

    Raises:
        ExportError: if an output differs by more than 1e-4 of its own size, signs of gradients of rounding size aside.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = len(next(iter(inputs.values())))
    for batch in (*BATCHES, rows):
        feed = {name: value[:batch] for name, value in inputs.items()}
        with torch.no_grad():
            wanted = graph(*feed.values())
        wanted = (wanted,) if isinstance(wanted, Tensor) else wanted
        got = session.run(outputs, {name: value.numpy() for name, value in feed.items()})
        truths = {name: truth.numpy() for name, truth in zip(outputs, wanted, strict=True)}
        for name, result in zip(outputs, got, strict=True):
            slack = _rounding_share(name, truths)
            _compare(f"{path.name}: {name} at batch {batch}", result, truths[name], slack=slack)


def check_gradients(path: Path, graph: UncertaintyGraph, observation: Tensor, action: Tensor) -> None:
    """Compare the exported gradient samples with autograd's, taken in float64.

    Raises:
        ExportError: if a sample differs by more than 1e-4 of the gradients' size.
    """
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(["gradient_samples"], {"observation": observation.numpy(), "action": action.numpy()})
    exact = copy.deepcopy(graph).double()
    samples = exact.noise.shape[0] * exact.noise.shape[2]
    wide = action.double()[:, None].expand(-1, samples, -1).reshape(-1, action.shape[-1]).requires_grad_()
    repeated = observation.double()[:, None].expand(-1, samples, -1).reshape(-1, observation.shape[-1])
    returns = exact.critic(repeated, wide, exact.noise)
    own = torch.cat(returns.unbind(), 1).view(len(observation), samples, samples).diagonal(dim1=1, dim2=2)
    (truth,) = torch.autograd.grad(own.sum(), wide)
    _compare(f"{path.name}: gradient_samples against autograd", got, truth.view(got.shape).numpy())


def _rounding_share(name: str, truths: dict[str, NDArray[np.floating]]) -> NDArray[np.floating] | float:
    """How far an output may differ because a gradient sample within rounding of zero points either way.

    One of N samples that changes its sign moves the share of the majority sign by 1 / N, and the mean of unit vectors by 2 / N where
    all its components are that small.
    """
    if name not in ("gradient_sign_agreement", "gradient_resultant_length"):
        return 0.0
    gradient = np.abs(truths["gradient_samples"])
    doubtful = gradient < RELATIVE * gradient.max()
    share: NDArray[np.floating] = (
        doubtful.mean(1) if name == "gradient_sign_agreement" else 2 * doubtful.all(-1).mean(1)
    )
    return share


def _compare(
    what: str, got: NDArray[np.floating], truth: NDArray[np.floating], *, slack: NDArray[np.floating] | float = 0.0
) -> None:
    if got.shape != truth.shape:
        raise ExportError(f"{what} has shape {got.shape}, torch gives {truth.shape}")
    size = float(np.abs(truth).max())
    error = float((np.abs(got - truth) - slack).max())
    if not error <= RELATIVE * max(size, 1e-3):
        raise ExportError(
            f"{what} differs from torch by {error:.3g}, which is more than {RELATIVE} of its size {size:.3g}"
        )
