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
SIZES = ((1, 1), (3, 2), (8, 5))
"""Batch, and candidates where the graph takes them."""
AUTOGRAD_ROWS = 16
Numbers = NDArray[np.floating]


def check_graph(
    path: Path, graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], *, threshold: float = 0.0
) -> None:
    """Compare ONNX Runtime with torch at batch 1, 3 and 8, with 1, 2 and 5 candidates where it takes them, and on everything given.

    Args:
        path: of the graph.
        graph: the same in torch.
        inputs: (B, S), and candidates (B, C, A) where the graph takes them.
        outputs: their names.
        threshold: of `return_below_threshold`.

    Raises:
        ExportError: if an output differs by more than 1e-4 of its own size; samples within rounding of a sign or of the threshold aside.
    """
    session = _session(path)
    for batch, candidates in (*SIZES, (None, None)):
        feed = {
            name: value[:batch, :candidates] if value.dim() == 3 else value[:batch] for name, value in inputs.items()
        }
        with torch.no_grad():
            wanted = graph(*feed.values())
        wanted = (wanted,) if isinstance(wanted, Tensor) else wanted
        got = session.run(outputs, {name: value.numpy() for name, value in feed.items()})
        truths = {name: truth.numpy() for name, truth in zip(outputs, wanted, strict=True)}
        for name, result in zip(outputs, got, strict=True):
            slack = _rounding_share(name, truths, threshold)
            _compare(f"{path.name}: {name} at batch {len(result)}", result, truths[name], slack=slack)


def check_gradients(path: Path, law: UncertaintyGraph, observation: Tensor, action: Tensor) -> None:
    """Compare the gradients of `uncertainty.onnx` with autograd's in float64, on up to 16 rows.

    Args:
        path: of the graph.
        law: what it was exported from.
        observation: (B, S)
        action: (B, A)

    Raises:
        ExportError: if one differs by more than 1e-4 of their size.
    """
    observation, action = observation[:AUTOGRAD_ROWS], action[:AUTOGRAD_ROWS]
    by_observation, by_action = autograd_gradients(law, observation, action)
    truths = {"gradient_samples": by_action, "observation_gradient_mean": by_observation.mean(1)}
    session = _session(path)
    names = [output.name for output in session.get_outputs() if output.name in truths]
    feed = {"observation": observation.numpy(), "action": action.unsqueeze(1).numpy()}
    for name, got in zip(names, session.run(names, feed), strict=True):
        _compare(f"{path.name}: {name} against autograd", got[:, 0], truths[name].numpy())


def autograd_gradients(law: UncertaintyGraph, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """Of every return sample by observation, (B, N, S), and action, (B, N, A), in float64."""
    critic = copy.deepcopy(law.critic).double()
    at = [value.double().requires_grad_() for value in (observation, action)]
    samples = torch.cat(critic(*at, law.noise.double()).unbind(), 1).unbind(1)
    by_observation, by_action = zip(
        *(torch.autograd.grad(sample.sum(), at, retain_graph=True) for sample in samples), strict=True
    )
    return torch.stack(by_observation, 1), torch.stack(by_action, 1)


def _session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def _rounding_share(name: str, truths: dict[str, Numbers], threshold: float) -> Numbers | float:
    """How far an output may differ because a sample within rounding of a mark lies on either side of it.

    One of N gradient samples that changes its sign moves the share of the majority sign by 1 / N, and the mean of unit vectors by 2 / N
    where all its components are that small; a return at the threshold moves the share under it by 1 / N.
    """
    if name == "return_below_threshold":
        returns = truths["return_samples"]
        near: Numbers = (np.abs(returns - threshold) < RELATIVE * np.abs(returns).max()).mean(-1)
        return near
    if name not in ("gradient_sign_agreement", "gradient_resultant_length"):
        return 0.0
    gradient = np.abs(truths["gradient_samples"])
    doubtful = gradient < RELATIVE * gradient.max()
    share: Numbers = doubtful.mean(-2) if name == "gradient_sign_agreement" else 2 * doubtful.all(-1).mean(-1)
    return share


def _compare(what: str, got: Numbers, truth: Numbers, *, slack: Numbers | float = 0.0) -> None:
    if got.shape != truth.shape:
        raise ExportError(f"{what} has shape {got.shape}, torch gives {truth.shape}")
    size = float(np.abs(truth).max())
    error = float((np.abs(got - truth) - slack).max())
    if not error <= RELATIVE * max(size, 1e-3):
        raise ExportError(
            f"{what} differs from torch by {error:.3g}, which is more than {RELATIVE} of its size {size:.3g}"
        )
