"""Writes a small real bundle by docs/bundle.md alone, without the exporter: a second opinion of the format."""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

S, A, N, HIDDEN = 3, 2, 16, 8
OBSERVATION = ("position", "velocity", "temperature")
ACTION = ("shoulder", "elbow")
LOW, HIGH = (-1.0, -0.4), (1.0, 0.4)
LEVELS = (0.1, 0.5, 0.9)
NORM_LEVELS = (0.5, 0.9)
CVAR_LEVEL = 0.25
SUMMARY = (
    "return_mean",
    "return_std",
    "return_quantiles",
    "return_cvar",
    "gradient_mean",
    "gradient_std",
    "gradient_norm_quantiles",
    "gradient_sign_agreement",
    "gradient_resultant_length",
    "return_samples",
    "gradient_samples",
)


class Actor(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(S, A)
        self.register_buffer("low", torch.tensor(LOW))
        self.register_buffer("high", torch.tensor(HIGH))

    def forward(self, observation: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * 0.5 * (torch.tanh(self.layer(observation)) + 1)


class Critic(nn.Module):
    """Returns Z_i = w . tanh(U s + V a + W noise_i), gradients V^T (w (1 - tanh^2)), and statistics of both."""

    def __init__(self) -> None:
        super().__init__()
        self.state, self.action = nn.Linear(S, HIDDEN), nn.Linear(A, HIDDEN, bias=False)
        self.register_buffer("noise", torch.randn(N, HIDDEN))
        self.head = nn.Parameter(torch.randn(HIDDEN))

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        hidden = torch.tanh((self.state(observation) + self.action(action)).unsqueeze(1) + self.noise)
        returns = hidden @ self.head
        gradients = ((1 - hidden**2) * self.head) @ self.action.weight
        ordered = _ascending(returns)
        norms = gradients.norm(dim=2)
        positive = (gradients > 0).float().mean(dim=1)
        return (
            returns.mean(dim=1),
            returns.std(dim=1),
            _quantiles(ordered, LEVELS),
            ordered[:, : int(CVAR_LEVEL * N)].mean(dim=1),
            gradients.mean(dim=1),
            gradients.std(dim=1),
            _quantiles(_ascending(norms), NORM_LEVELS),
            torch.maximum(positive, 1 - positive),
            (gradients / norms.clamp_min(1e-12).unsqueeze(2)).mean(dim=1).norm(dim=1),
            returns,
            gradients,
        )


def _ascending(values: Tensor) -> Tensor:
    return torch.topk(values, N, dim=1, largest=False, sorted=True).values


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
        return (action, *self.critic(observation, action))


def modules(seed: int = 0) -> Policy:
    torch.manual_seed(seed)
    return Policy(Actor(), Critic()).eval()


def write(path: Path, policy: Policy, *, name: str = "reacher") -> Path:
    """Writes the bundle of `policy` and returns its directory."""
    path.mkdir()
    observation, action = torch.randn(4, S), torch.zeros(4, A)
    _export(policy.actor, (observation,), ["observation"], ["action"], path / "actor.onnx")
    _export(policy.critic, (observation, action), ["observation", "action"], list(SUMMARY), path / "uncertainty.onnx")
    _export(policy, (observation,), ["observation"], ["action", *SUMMARY], path / "policy.onnx")
    with torch.no_grad():
        outputs = dict(zip(("action", *SUMMARY), policy(observation), strict=True))
    np.savez(path / "golden.npz", observation=observation.numpy(), **{k: v.numpy() for k, v in outputs.items()})
    (path / "README.md").write_text("# A small policy\n")
    manifest = {
        "format_version": 1,
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
        "normalisation": {"observation_mean": [0.0] * S, "observation_std": [1.0] * S},
        "observed_range": {"low": [-3.0] * S, "high": [3.0] * S},
        "uncertainty": {
            "discount": 0.99,
            "sample_count": N,
            "noise_seed": 0,
            "return_quantile_levels": list(LEVELS),
            "cvar_level": CVAR_LEVEL,
            "gradient_norm_levels": list(NORM_LEVELS),
        },
        "training": {"algorithm": "none", "environment_steps": 0, "seed": 0, "config": {}},
        "libraries": {"torch": torch.__version__},
        "evaluation": {
            "episodes": 1,
            "seeds": [1],
            "return_mean": 0.5,
            "return_std": 0.0,
            "return_min": 0.5,
            "untrained_return_mean": 0.5,
        },
        "calibration": None,
        "tolerance": {"relative": 1e-4, "absolute": 1e-5},
    }
    seal(path, manifest)
    return path


def seal(path: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest with the hashes of the files as they are now."""
    names = ("actor.onnx", "uncertainty.onnx", "policy.onnx", "golden.npz", "README.md")
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
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
