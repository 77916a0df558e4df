"""The policy card: what a person reads before this policy may run on a robot."""

import dataclasses
from typing import Any

from dst_core.calibration.result import Calibration


def card_json(manifest: dict[str, Any], calibration: Calibration | None) -> dict[str, Any]:
    """The card for programs: the manifest's tables, and calibration and warning in full."""
    tables = {name: manifest[name] for name in ("name", "task", "training", "evaluation", "uncertainty", "libraries")}
    return {**tables, "calibration": None if calibration is None else dataclasses.asdict(calibration)}


def policy_card(manifest: dict[str, Any], calibration: Calibration | None) -> str:
    """Markdown for the bundle's README."""
    task, evaluation, uncertainty = manifest["task"], manifest["evaluation"], manifest["uncertainty"]
    noise = ", ".join(task["perturbations"]) or "none"
    low, high = uncertainty["return_quantile_levels"][0], uncertainty["return_quantile_levels"][-1]
    mean, spread, worst = (evaluation[f"return_{name}"] for name in ("mean", "std", "min"))
    training = manifest["training"]
    return f"""# Policy card: {manifest["name"]}

Trained on **{task["environment"]}** with perturbations: {noise}.
{training["steps"]} environment steps, seed {training["seed"]}, {training["algorithm"]}.

## How good it is

| | return per episode |
|---|---|
| this policy, {evaluation["episodes"]} held-out episodes | {mean:.1f} ± {spread:.1f} (worst {worst:.1f}) |
| before training | {evaluation["untrained_return_mean"]:.1f} |

± is one standard deviation between episodes.

## What it says about its own uncertainty

With every action: the law of the discounted return (discount {uncertainty["discount"]}), from
{uncertainty["sample_count"]} samples, as mean, standard deviation, quantiles from {low:g} to {high:g} and the mean of
the worst {uncertainty["cvar_level"]:.0%}; and the law of its gradient with respect to the action.

{_calibrated(manifest) if calibration is not None else _not_calibrated(low, high)}

## Contract

Control period {manifest["control_period_s"]:g} s.

| observation | unit | seen in training |
|---|---|---|
{_observations(manifest)}

| action | unit | limits |
|---|---|---|
{_actions(manifest)}

## Limits

The policy knows only the task and noise named above. Outside the range seen in training its actions and its uncertainty are extrapolation.
It has been evaluated in simulation only.
"""


def _not_calibrated(low: float, high: float) -> str:
    return (
        "**Not calibrated.** The quantiles are the critic's belief. No held-out coverage was measured; "
        f"do not read the band from {low:g} to {high:g} as a guarantee."
    )


def _calibrated(manifest: dict[str, Any]) -> str:
    found = manifest["calibration"]
    pairs = zip(found["levels"], found["raw"]["coverage"], found["corrected"]["coverage"], strict=True)
    rows = "\n".join(f"| {level:g} | {raw:.3f} | {corrected:.3f} |" for level, raw, corrected in pairs)
    return f"| nominal | raw | corrected |\n|---|---|---|\n{rows}"


def _observations(manifest: dict[str, Any]) -> str:
    seen = zip(
        manifest["observation"], manifest["observed_range"]["low"], manifest["observed_range"]["high"], strict=True
    )
    return "\n".join(
        f"| {channel['name']} | {channel['unit']} | {low:.3g} to {high:.3g} |" for channel, low, high in seen
    )


def _actions(manifest: dict[str, Any]) -> str:
    return "\n".join(
        f"| {channel['name']} | {channel['unit']} | {channel['low']:g} to {channel['high']:g} |"
        for channel in manifest["action"]
    )
