"""Writes a small real bundle by docs/bundle.md alone, without the exporter: a second opinion of the format."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

S, A, N, HIDDEN = 3, 2, 16, 8
OBSERVATION = ("position", "velocity", "temperature")
OBSERVATION_STD = (1.0, 2.0, 0.5)
ACTION = ("shoulder", "elbow")
LOW, HIGH = (-1.0, -0.4), (1.0, 0.4)
LEVELS = (0.1, 0.5, 0.9)
NORM_LEVELS = (0.5, 0.9)
CVAR_LEVEL = 0.25
THRESHOLD = -0.25
REFERENCES = 5
BEYOND = (-0.8, 0.0, 0.6)
POSITIONS = tuple(level + beyond for level, beyond in zip(LEVELS, BEYOND, strict=True))
CALIBRATION = {
    "episodes": 40,
    "test_episodes": 30,
    "first_seed": 1000,
    "first_test_seed": 1040,
    "positions": list(POSITIONS),
    "levels": [0.5, 0.8],
    "raw": {
        "coverage": [0.31, 0.62],
        "coverage_low": [0.2, 0.5],
        "coverage_high": [0.4, 0.7],
        "width": [1.0, 2.0],
        "crps": 0.4,
        "bias": -0.3,
    },
    "corrected": {
        "coverage": [0.49, 0.81],
        "coverage_low": [0.4, 0.7],
        "coverage_high": [0.6, 0.9],
        "width": [1.5, 3.0],
        "crps": 0.3,
        "bias": 0.01,
    },
    "false_alarm_rate": 0.01,
    "critic_disagreement_threshold": 5.0,
    "data_distance_threshold": 4.0,
}


SUMMARY = (
    "return_mean",
    "return_std",
    "return_quantiles_raw",
    "return_quantiles_corrected",
    "return_cvar",
    "return_below_threshold",
    "gradient_mean",
    "gradient_std",
    "gradient_norm_quantiles",
    "gradient_sign_agreement",
    "gradient_resultant_length",
    "critic_disagreement",
    "data_distance",
    "observation_gradient_mean",
    "return_samples",
    "gradient_samples",
)
OPTIONAL = ("return_quantiles_corrected", "observation_gradient_mean")


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(S, A)
        self.register_buffer("low", torch.tensor(LOW))
        self.register_buffer("high", torch.tensor(HIGH))

    def forward(self, observation: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * 0.5 * (torch.tanh(self.layer(observation)) + 1)


class Critic(nn.Module):
    """Returns Z_i = w . tanh(U s + V a + W noise_i) of every candidate, their gradients, and statistics of both.

    The gradients are V^T (w (1 - tanh^2)) by the action and U^T of the same by the observation; odd and even samples
    stand for two critics.
    """

    def __init__(self) -> None:
        super().__init__()
        self.state, self.action = nn.Linear(S, HIDDEN), nn.Linear(A, HIDDEN, bias=False)
        self.register_buffer("noise", torch.randn(N, HIDDEN))
        self.head = nn.Parameter(torch.randn(HIDDEN))
        self.register_buffer("references", torch.randn(REFERENCES, S))

    def forward(self, observation: Tensor, candidates: Tensor) -> tuple[Tensor, ...]:
        """observation (B, S), candidates (B, C, A); everything (B, C, ...)."""
        law = (self.state(observation).unsqueeze(1) + self.action(candidates)).unsqueeze(2)
        hidden = torch.tanh(law + self.noise)
        slopes = (1 - hidden**2) * self.head
        returns, gradients = hidden @ self.head, slopes @ self.action.weight
        ordered = _ascending(returns)
        mean, std = returns.mean(dim=2), returns.std(dim=2)
        raw = _quantiles(ordered, LEVELS)
        low, median, high = (raw + torch.tensor(BEYOND) * std.unsqueeze(2)).unbind(dim=2)
        norms = gradients.norm(dim=3)
        positive = (gradients > 0).float().mean(dim=2)
        distance = ((observation.unsqueeze(1) - self.references) ** 2).mean(dim=2).sqrt().amin(dim=1, keepdim=True)
        values = {
            "return_mean": mean,
            "return_std": std,
            "return_quantiles_raw": raw,
            "return_quantiles_corrected": torch.stack(
                (torch.minimum(low, median), median, torch.maximum(high, median)), dim=2
            ),
            "return_cvar": ordered[:, :, : int(CVAR_LEVEL * N)].mean(dim=2),
            "return_below_threshold": (returns < THRESHOLD).float().mean(dim=2),
            "gradient_mean": gradients.mean(dim=2),
            "gradient_std": gradients.std(dim=2),
            "gradient_norm_quantiles": _quantiles(_ascending(norms), NORM_LEVELS),
            "gradient_sign_agreement": torch.maximum(positive, 1 - positive),
            "gradient_resultant_length": (gradients / norms.clamp_min(1e-12).unsqueeze(3)).mean(dim=2).norm(dim=2),
            "critic_disagreement": (returns[:, :, ::2].mean(dim=2) - returns[:, :, 1::2].mean(dim=2)).abs() / 2,
            "data_distance": distance + 0 * mean,
            "observation_gradient_mean": (slopes @ self.state.weight).mean(dim=2),
            "return_samples": returns,
            "gradient_samples": gradients,
        }
        return tuple(values[name] for name in SUMMARY)


def _ascending(values: Tensor) -> Tensor:
    return torch.topk(values, N, dim=-1, largest=False, sorted=True).values


def _quantiles(ordered: Tensor, levels: tuple[float, ...]) -> Tensor:
    weights = torch.zeros(N, len(levels))
    for column, level in enumerate(levels):
        place = level * (N - 1)
        below = int(place)
        weights[below, column] += 1 - (place - below)
        weights[min(below + 1, N - 1), column] += place - below
    return ordered @ weights


class Policy(nn.Module):
    def __init__(self, actor: Actor, critic: Critic) -> None:
        super().__init__()
        self.actor, self.critic = actor, critic

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        action = self.actor(observation)
        return (action, *(values.squeeze(1) for values in self.critic(observation, action.unsqueeze(1))))


def modules(seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    return Policy(Actor(), Critic()).eval()


def write(path: Path, policy: Policy, *, name: str = "reacher") -> Path:
    """Writes the bundle of `policy` and returns its directory."""
    path.mkdir()
    observation, candidates = torch.randn(4, S), torch.zeros(4, 3, A)
    names = list(SUMMARY)
    _export(policy.actor, (observation,), ["observation"], ["action"], path / "actor.onnx")
    _export(policy.critic, (observation, candidates), ["observation", "action"], names, path / "uncertainty.onnx")
    _export(policy, (observation,), ["observation"], ["action", *names], path / "policy.onnx")
    with torch.no_grad():
        golden = dict(zip(("action", *names), policy(observation), strict=True))
    np.savez(path / "golden.npz", observation=observation.numpy(), **{k: v.numpy() for k, v in golden.items()})
    (path / "README.md").write_text("# A small policy\n")
    (path / "card.json").write_text("{}\n")
    (path / "calibration.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>\n")
    manifest = {
        "format_version": 2,
        "name": name,
        "task": {"environment": "SmallReacher-v0", "perturbations": ["action_noise=0.1"]},
        "observation": [
            {"name": name, "unit": unit, "low": low, "high": None}
            for name, unit, low in zip(OBSERVATION, ("m", "m/s", "°C"), (-2.5, None, -273.15), strict=True)
        ],
        "action": [
            {"name": name, "unit": "N m", "low": low, "high": high}
            for name, low, high in zip(ACTION, LOW, HIGH, strict=True)
        ],
        "control_period_s": 0.01,
        "normalisation": {"observation_mean": [0.0] * S, "observation_std": list(OBSERVATION_STD)},
        "observed_range": {"low": [-3.0] * S, "high": [3.0] * S},
        "uncertainty": {
            "discount": 0.99,
            "sample_count": N,
            "noise_seed": 0,
            "return_quantile_levels": list(LEVELS),
            "cvar_level": CVAR_LEVEL,
            "gradient_norm_levels": list(NORM_LEVELS),
            "return_threshold": THRESHOLD,
            "reference_observations": REFERENCES,
            "observation_gradient": True,
        },
        "training": {"algorithm": "none", "steps": 0, "seed": 0, "configuration": {}},
        "libraries": {"torch": torch.__version__},
        "evaluation": {
            "episodes": 1,
            "seeds": [1],
            "return_mean": 0.5,
            "return_std": 0.0,
            "return_min": 0.5,
            "untrained_return_mean": 0.5,
        },
        "calibration": CALIBRATION,
        "tolerance": {"relative": 1e-4, "absolute": 1e-5},
    }
    seal(path, manifest)
    return path


def uncalibrated(bundle: Path, path: Path, *, name: str = "reacher") -> Path:
    """Writes the same policy as one that was not calibrated and gives no gradient by the observation."""
    shutil.copytree(bundle, path)
    (path / "calibration.svg").unlink()
    for graph in ("policy.onnx", "uncertainty.onnx"):
        model = onnx.load(path / graph)
        for output in [output for output in model.graph.output if output.name in OPTIONAL]:
            model.graph.output.remove(output)
        onnx.save(model, path / graph)
    with np.load(path / "golden.npz") as archive:
        golden = {key: archive[key] for key in archive.files if key not in OPTIONAL}
    np.savez(path / "golden.npz", **golden)
    manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    manifest.update(name=name, calibration=None)
    manifest["uncertainty"]["observation_gradient"] = False
    seal(path, manifest)
    return path


def seal(path: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest with the hashes of the files as they are now."""
    names = sorted(file.name for file in path.iterdir() if file.name != "manifest.json")
    manifest["files"] = {name: hashlib.sha256((path / name).read_bytes()).hexdigest() for name in names}
    manifest.pop("version", None)
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    manifest["version"] = hashlib.sha256(canonical.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest, indent=2, ensure_ascii=False), encoding="utf-8")


def _export(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str], path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not what is tested here
        torch.onnx.export(
            module,
            inputs,
            path,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=tuple(
                {axis: torch.export.Dim(name) for axis, name in enumerate(("batch", "candidates")[: value.ndim - 1])}
                for value in inputs
            ),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
