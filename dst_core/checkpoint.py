"""A run's directory: its configuration, and a checkpoint that holds tensors and JSON only (nothing is unpickled)."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dst_core.errors import TrainingError

CONFIG_FILE = "config.json"
CHECKPOINT_FILE = "checkpoint.safetensors"


def write_json(path: Path, content: object) -> None:
    """Write JSON so that a reader sees the old file or the new one, never a part."""
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def save_checkpoint(directory: Path, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
    """Write the checkpoint so that an interrupted write leaves the previous one whole."""
    partial = directory / (CHECKPOINT_FILE + ".partial")
    plain = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(plain, partial, metadata={"progress": json.dumps(progress)})
    partial.replace(directory / CHECKPOINT_FILE)


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
    """Take over what `optimiser_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix + "."):
            index, name = key.removeprefix(prefix + ".").split(".")
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
