"""In what two bundles differ: in what they say, and in what they answer on the golden observations of both."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from server.bundle import SAMPLE_OUTPUTS, Bundle
from server.errors import InvalidInputError
from server.manifest import Manifest
from server.runtime import Detail, FloatArray, Runtime

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "contract": ("observation", "action", "control_period_s"),
    "configuration": ("task", "uncertainty", "training", "libraries"),
    "training data": ("normalisation", "observed_range"),
    "evaluation": ("evaluation",),
    "calibration": ("calibration",),
}
"""Parts of the manifest that are compared, under the names a reader knows them by."""
LEVELS: Mapping[str, str] = {
    "return_quantiles_raw": "return_quantile_levels",
    "return_quantiles_corrected": "return_quantile_levels",
    "return_cvar": "cvar_level",
    "return_below_threshold": "return_threshold",
    "gradient_norm_quantiles": "gradient_norm_levels",
}
"""What must agree in `uncertainty` for an output to mean the same in both."""
ABSENT = "absent"


@dataclass(frozen=True, kw_only=True)
class Change:
    """One value that differs."""

    what: str
    """Its path in the manifest."""
    first: Any
    """`absent` where there is none."""
    second: Any
    """`absent` where there is none."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far two versions of one quantity lie apart over the golden observations, in its unit."""

    mean: float
    """Mean absolute difference."""
    largest: float
    """Largest absolute difference."""


@dataclass(frozen=True, kw_only=True)
class OutputGap:
    """How far the answers of two bundles lie apart in one output."""

    output: str
    """Output; an action's channel with its unit; or the Wasserstein-1 distance of the return samples."""
    size: float
    """Mean absolute value in the first bundle, to judge the gaps by."""
    served: Gap
    """As served: each at the action that it decides."""
    same_action: Gap | None
    """Both at the actions that the first decides; None where there is no such comparison."""


@dataclass(frozen=True, kw_only=True)
class BundleDifference:
    """In what two bundles differ."""

    changes: dict[str, list[Change]]
    """By section; empty lists where nothing differs."""
    observations: int
    """Golden observations that both answered; 0 where they cannot be compared."""
    gaps: list[OutputGap]
    """One per output that means the same in both."""
    notes: list[str]
    """What could not be compared, and why."""


def bundle_difference(
    first: Bundle, first_runtime: Runtime, second: Bundle, second_runtime: Runtime
) -> BundleDifference:
    """Compares two verified bundles.

    Raises:
        InferenceError: one of them has no usable answer to a golden observation of the other.
    """
    changes = {
        section: [change for key in keys for change in _changes(key, *_documents(first, second, key))]
        for section, keys in SECTIONS.items()
    }
    for vector in ("observation", "action"):
        channels = [
            [(channel.name, channel.unit) for channel in getattr(bundle.manifest, vector)] for bundle in (first, second)
        ]
        if channels[0] != channels[1]:
            note = f"answers are not compared: the {vector} channels differ in name, unit or order"
            return BundleDifference(changes=changes, observations=0, gaps=[], notes=[note])
    observations = np.concatenate([first.golden["observation"], second.golden["observation"]])
    gaps, notes = _gaps(first.manifest, first_runtime, second.manifest, second_runtime, observations)
    return BundleDifference(changes=changes, observations=len(observations), gaps=gaps, notes=notes)


def _documents(first: Bundle, second: Bundle, key: str) -> tuple[Any, ...]:
    one, other = (bundle.manifest.model_dump(mode="json")[key] for bundle in (first, second))
    if key == "calibration" and None in (one, other):
        return tuple("not calibrated" if value is None else "calibrated" for value in (one, other))
    return one, other


def _changes(path: str, first: object, second: object) -> list[Change]:
    """Every leaf of two JSON values that differs."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = [*first, *(key for key in second if key not in first)]
        parts = [(f"{path}.{key}", first.get(key, ABSENT), second.get(key, ABSENT)) for key in keys]
    elif isinstance(first, list) and isinstance(second, list):
        length = max(len(first), len(second))
        padded = [[*values, *[ABSENT] * (length - len(values))] for values in (first, second)]
        parts = [(f"{path}[{index}]", one, other) for index, (one, other) in enumerate(zip(*padded, strict=True))]
    else:
        return [] if first == second else [Change(what=path, first=first, second=second)]
    return [change for part in parts for change in _changes(*part)]


def _gaps(
    first: Manifest, first_runtime: Runtime, second: Manifest, second_runtime: Runtime, observations: FloatArray
) -> tuple[list[OutputGap], list[str]]:
    one, other = (
        dict(zip(runtime.outputs[Detail.SAMPLES], runtime.infer(observations, Detail.SAMPLES), strict=True))
        for runtime in (first_runtime, second_runtime)
    )
    names, notes = _comparable(first, one, second, other)
    same: dict[str, FloatArray] = {}
    try:
        assessed = second_runtime.assess(observations, one["action"][:, np.newaxis])
        same = {name: values[:, 0] for name, values in assessed.items()}
    except InvalidInputError as error:
        notes.append(
            f"laws at the same actions are not compared: the second bundle refuses actions of the first: {error}"
        )
    gaps = [
        OutputGap(
            output=f"action {channel.name} [{channel.unit}]",
            size=_size(one["action"][:, index]),
            served=_gap(one["action"][:, index] - other["action"][:, index]),
            same_action=None,
        )
        for index, channel in enumerate(first.action)
    ]
    gaps += [
        OutputGap(
            output=name,
            size=_size(one[name]),
            served=_gap(one[name] - other[name]),
            same_action=_gap(one[name] - same[name]) if same else None,
        )
        for name in names
    ]
    samples = "return_samples"
    gaps.append(
        OutputGap(
            output="return law (Wasserstein-1)",
            size=_size(one[samples]),
            served=_gap(wasserstein_1(one[samples], other[samples])),
            same_action=_gap(wasserstein_1(one[samples], same[samples])) if same else None,
        )
    )
    return gaps, notes


def _comparable(
    first: Manifest, one: Mapping[str, FloatArray], second: Manifest, other: Mapping[str, FloatArray]
) -> tuple[list[str], list[str]]:
    """Summary outputs that both have and that mean the same, and a note on each other one."""
    names, notes = [], []
    for name in dict.fromkeys([*one, *other]):
        if name == "action" or name in SAMPLE_OUTPUTS:
            continue
        level = LEVELS.get(name)
        if name not in one or name not in other:
            notes.append(f"{name} is given by the {'first' if name in one else 'second'} bundle alone")
        elif level and getattr(first.uncertainty, level) != getattr(second.uncertainty, level):
            notes.append(f"{name} is not compared: uncertainty.{level} differs")
        else:
            names.append(name)
    return names, notes


def _gap(difference: FloatArray) -> Gap:
    distance = np.abs(difference.astype(np.float64))
    return Gap(mean=float(distance.mean()), largest=float(distance.max()))


def _size(values: FloatArray) -> float:
    return float(np.abs(values.astype(np.float64)).mean())


def wasserstein_1(first: FloatArray, second: FloatArray) -> FloatArray:
    """Wasserstein-1 distance between the empirical laws of the rows: the mean distance between their quantiles.

    Args:
        first: (B, N).
        second: (B, M).

    Returns:
        (B,), in the unit of the samples.
    """
    n, m = first.shape[1], second.shape[1]
    steps = math.lcm(n, m)
    # Where one of the two quantile functions jumps, counted in exact steps of 1 / lcm(N, M).
    edges = np.union1d(np.arange(0, steps + 1, steps // n), np.arange(0, steps + 1, steps // m))
    one = np.sort(first, axis=1)[:, edges[:-1] // (steps // n)]
    other = np.sort(second, axis=1)[:, edges[:-1] // (steps // m)]
    return np.asarray(np.abs(one - other) @ (np.diff(edges) / steps), np.float32)
