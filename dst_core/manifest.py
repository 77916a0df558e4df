"""The manifest of a bundle (docs/bundle.md) and its seal: hashes of the files, and a version that is the hash of it all."""

import hashlib
import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dst_core.calibration.result import Calibration
from dst_core.contract import plain_contract
from dst_core.evaluate import evaluation_seeds
from dst_core.graphs import UncertaintyGraph
from dst_core.run import Run
from dst_core.served_law import NOISE_SEED
from dst_core.summary import CVAR_LEVEL, NORM_LEVELS, RETURN_LEVELS

FORMAT_VERSION = 2
NAME_LENGTH = 64
TOLERANCE = {"relative": 1e-3, "absolute": 1e-3}
LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "gymnasium", "mujoco", "numpy")


def describe(
    run: Run, law: UncertaintyGraph, *, name: str | None, observation_gradient: bool, calibration: Calibration | None
) -> dict[str, Any]:
    """Everything but `files` and `version`; the name is that of the task unless given."""
    agent, evaluations = run.agent, run.progress["evaluations"]
    first, last = evaluations[0], evaluations[-1]
    return {
        "format_version": FORMAT_VERSION,
        "name": name or policy_name(run.config.env),
        "task": {"environment": run.config.env, "perturbations": list(run.config.perturb)},
        **plain_contract(run.contract),
        "normalisation": {
            "observation_mean": agent.observation.mean.tolist(),
            "observation_std": agent.observation.std.tolist(),
        },
        "observed_range": {"low": agent.observation.low.tolist(), "high": agent.observation.high.tolist()},
        "uncertainty": {
            "discount": run.config.agent.discount,
            "sample_count": law.summarise.count,
            "noise_seed": NOISE_SEED,
            "return_quantile_levels": list(RETURN_LEVELS),
            "cvar_level": CVAR_LEVEL,
            "gradient_norm_levels": list(NORM_LEVELS),
            "return_threshold": float(law.summarise.return_threshold),
            "reference_observations": len(law.data_distance.references),
            "observation_gradient": observation_gradient,
        },
        "training": {
            "algorithm": "Distributional Sobolev Training",
            "steps": run.progress["step"],
            "seed": run.config.seed,
            "configuration": run.config.to_json(),
        },
        "libraries": {name: found for name in LIBRARIES if (found := _installed(name)) is not None},
        "evaluation": {
            "episodes": len(last["returns"]),
            "seeds": list(evaluation_seeds(len(last["returns"]))),
            "return_mean": last["return_mean"],
            "return_std": last["return_std"],
            "return_min": last["return_min"],
            "untrained_return_mean": first["return_mean"],
        },
        "calibration": None if calibration is None else calibration.manifest(),
        "tolerance": TOLERANCE,
    }


def write_sealed(manifest: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Write the manifest over all files in the directory.

    Returns:
        The manifest with `files` and `version`.
    """
    sealed = {**manifest, "files": {path.name: _sha256(path.read_bytes()) for path in sorted(directory.iterdir())}}
    sealed["version"] = _sha256(_canonical(sealed))
    text = json.dumps(sealed, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "manifest.json").write_text(text + "\n", encoding="utf-8")
    return sealed


def policy_name(environment: str) -> str:
    """The name a policy has unless it is given one: the task's id in the characters and the length that names may have."""
    return re.sub(r"[^a-z0-9._-]", "-", environment.lower()).lstrip("._-")[:NAME_LENGTH]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except ModuleNotFoundError:
        return None


def _canonical(manifest: dict[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
