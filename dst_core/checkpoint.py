"""A run's directory: its configuration, and a checkpoint that holds tensors and JSON only (nothing is unpickled)."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dst_core.errors import TrainingError

CONFIG_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.safetensors"


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A file to write beside `path`, which takes its place once it is whole and on the disk.

    Raises:
        TrainingError: if it cannot be written; `path` is then as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{path} cannot be written ({error}); what it held before is unchanged. Make room there, or choose another directory"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part.

    Raises:
        TrainingError: if it cannot be written.
    """
    with _replaced(path) as partial:
        partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def save_checkpoint(directory: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write the checkpoint so that an interrupted write leaves the previous one whole.

    Raises:
        TrainingError: if it cannot be written.
    """
    with _replaced(directory / CHECKPOINT_FILE) as partial:
        save_file(_separate(tensors), partial, metadata={"progress": json.dumps(progress)})


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, contiguous, no two in one piece of memory; only those that are not so already are copied."""
    separate: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in taken:
            plain = plain.clone()
        taken.add(plain.untyped_storage().data_ptr())
        separate[name] = plain
    return separate


def load_config(directory: Path) -> dict[str, Any]:
    """The resolved configuration of a run.

    Raises:
        TrainingError: if there is no run, or its configuration cannot be read.
    """
    path = directory / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(
            f"{directory} holds no run: {CONFIG_FILE} is missing; train one with dst-train --out {directory}"
        ) from None
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{path} cannot be read: {error}; restore it, or train again into an empty directory"
        ) from error
    if not isinstance(config, dict):
        raise TrainingError(f"{path} must hold a JSON object, got {type(config).__name__}; restore it, or train again")
    return config


def load_checkpoint(directory: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and progress of a run's checkpoint.

    Raises:
        TrainingError: if the file is missing, truncated or not a checkpoint.
    """
    path = directory / CHECKPOINT_FILE
    if not path.exists():
        raise TrainingError(
            f"{directory} holds no checkpoint ({CHECKPOINT_FILE}); train first, or wait for the first checkpoint"
        )
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
            progress = json.loads(file.metadata()["progress"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise TrainingError(f"{path} is damaged ({error}); restore it from a copy, or train again") from error
    return tensors, progress


def optimiser_tensors(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """Adam's moments and step counts as named tensors."""
    state = optimiser.state_dict()["state"]
    return {f"{prefix}.{index}.{name}": value for index, entries in state.items() for name, value in entries.items()}


def load_optimiser(optimiser: torch.optim.Optimizer, prefix: str, tensors: dict[str, Tensor]) -> None:
    """Take over what `optimiser_tensors` gave.

    Raises:
        ValueError: if the tensors are not those of this optimiser's parameters.
    """
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix + "."):
            index, name = key.removeprefix(prefix + ".").split(".")
            state.setdefault(int(index), {})[name] = value
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for number, entries in state.items():
        shapes = {name: tuple(value.shape) for name, value in entries.items()}
        moment = tuple(parameters[number].shape) if number < len(parameters) else None
        if shapes != {"step": (), "exp_avg": moment, "exp_avg_sq": moment}:
            raise ValueError(f"{prefix}.{number} must fit a parameter of shape {moment}, got {shapes}")
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
