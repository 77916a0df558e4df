"""The policy card: what a person reads before this policy may run on a robot."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dst_core.calibration.by_episode import estimate
from dst_core.calibration.result import Calibration, Estimate, Scores, Threshold
from dst_core.card_figures import SIGNALS
from dst_core.run import Run

TELLING_LEVEL = 0.9
"""Of the interval that the summary speaks of; the nearest one that was scored."""
DISCRIMINATES = 0.8
CHANCE = 0.5


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a run tells of itself that the manifest does not hold."""

    returns: tuple[float, ...]
    """Of the last evaluation's episodes, in units of reward."""
    untrained_returns: tuple[float, ...]
    critics: dict[str, Any]
    """Both kinds of critics against realised returns (`dst_core.evaluation_critic.compared`); empty where they were not compared."""

    @classmethod
    def of(cls, run: Run) -> "Record":
        """The record of a finished run."""
        evaluations = run.progress["evaluations"]
        return cls(
            returns=tuple(evaluations[-1]["returns"]),
            untrained_returns=tuple(evaluations[0]["returns"]),
            critics=run.progress["critics"],
        )


def card_json(manifest: dict[str, Any], calibration: Calibration | None, record: Record) -> dict[str, Any]:
    """The card for programs: the manifest's tables, the run's record, and calibration and warning in full."""
    tables = {name: manifest[name] for name in ("name", "task", "training", "evaluation", "uncertainty", "libraries")}
    return {
        **tables,
        **dataclasses.asdict(record),
        "return": dataclasses.asdict(_mean(record.returns)),
        "untrained_return": dataclasses.asdict(_mean(record.untrained_returns)),
        "calibration": None if calibration is None else dataclasses.asdict(calibration),
    }


def policy_card(manifest: dict[str, Any], calibration: Calibration | None, record: Record) -> str:
    """Markdown for the bundle's README."""
    task, training, uncertainty = manifest["task"], manifest["training"], manifest["uncertainty"]
    disturbances = ", ".join(task["perturbations"]) or "nothing beyond the task's own noise"
    measured = _not_measured(record) if calibration is None else _measured(calibration)
    return f"""# Policy card: {manifest["name"]}

{_at_a_glance(manifest, calibration, record)}

## What it was trained on

**{task["environment"]}**, disturbed by: {disturbances}.
{training["steps"]} environment steps, seed {training["seed"]}, {training["algorithm"]}, in simulation.

## How good it is

{_returns(record)}

## What the law promises

With every action comes the law of the discounted return that follows if the policy goes on, and of its gradient by the action.
The discount is {uncertainty["discount"]:g} per step of {manifest["control_period_s"]:g} s.
The law has {uncertainty["sample_count"]} samples of an evaluation critic, fitted afresh to this policy.
{_promise(calibration)}

## What it was measured to hold

{measured}

## Does it warn of falls

{_warning(calibration)}

## Contract

One decision every {manifest["control_period_s"]:g} s.

| observation | unit | seen in training |
|---|---|---|
{_observations(manifest)}

| action | unit | limits |
|---|---|---|
{_actions(manifest)}

## Limits

{_limits(manifest, calibration)}

## Versions

Bundle format {manifest["format_version"]}. {_versions(manifest)}.
"""


def _at_a_glance(manifest: dict[str, Any], calibration: Calibration | None, record: Record) -> str:
    before = _mean(record.untrained_returns).value
    earned = f"earns {_number(_mean(record.returns))} per episode in simulation, before training {before:.4g}"
    if calibration is None:
        return f"""> **Not calibrated.** How often its uncertainty holds was not measured. The quantiles are a critic's belief:
> do not let a robot rely on them.

It {earned}."""
    index = min(range(len(calibration.levels)), key=lambda place: abs(calibration.levels[place] - TELLING_LEVEL))
    level, corrected = calibration.levels[index], calibration.corrected.coverage[index]
    return f"""- It {earned}.
- Its corrected {_percent(level)} interval held {_share(corrected)} of the returns of {calibration.test_episodes} fresh episodes:
  {_verdict(corrected, level)}.
  Uncorrected it held {_share(calibration.raw.coverage[index])}.
- {_warns(calibration)}
- All of this in simulation, in {manifest["task"]["environment"]} with the disturbances below. It says nothing of another task or robot."""


def _verdict(found: Estimate, level: float) -> str:
    if found.high < level:
        return "**less than it promises**"
    return "more than it promises" if found.low > level else "what it promises, as far as these episodes can tell"


def _warns(calibration: Calibration) -> str:
    if not calibration.warnings:
        return f"Whether it warns of falls could not be measured: {calibration.no_warnings}."
    telling = [found for found in calibration.warnings if found.auc.low > CHANCE]
    if not telling:
        return "**It does not warn of falls**: no signal was higher before falls than chance explains."
    best = max(telling, key=lambda found: found.auc.value)
    name = SIGNALS.get(best.signal, best.signal)
    strength = "Falls announce themselves" if best.auc.low >= DISCRIMINATES else "Falls announce themselves, but weakly"
    return f"{strength}: best by '{name}', area under the curve {_number(best.auc, '.2f')} (0.5 is chance)."


def _returns(record: Record) -> str:
    rows = [
        (
            name,
            str(len(returns)),
            _number(_mean(returns)),
            f"{np.std(returns):.4g}",
            f"{min(returns):.4g}",
            f"{max(returns):.4g}",
        )
        for name, returns in (("this policy", record.returns), ("before training", record.untrained_returns))
    ]
    heading = ("return per episode", "episodes", "mean", "standard deviation", "worst", "best")
    return f"""{_table(heading, rows)}

On seeds that training never used, without exploration noise. {INTERVALS}"""


INTERVALS = "In brackets: 95 % bootstrap intervals over episodes."


def _promise(calibration: Calibration | None) -> str:
    if calibration is None:
        return "It promises nothing: the quantiles are raw."
    return """
The corrected quantiles promise this, and no more: at a tick drawn at random from a new episode of the same task under this policy, the
return that is realised lies in a central interval with at least its nominal probability, on average over calibrations. At one particular
state the interval may always be too narrow. The mean, the standard deviation, the CVaR, the gradients and the samples are not corrected."""


def _not_measured(record: Record) -> str:
    compared = _compared(record)
    return "Nothing was measured on episodes set aside for it." + (f"\n\n{compared}" if compared else "")


def _compared(record: Record) -> str:
    """The comparison at the end of the fit: few episodes, but the only one that an uncalibrated bundle has."""
    rows = [
        (
            f"{name} critic{'s' if name == 'training' else ''}",
            f"{law['bias']:.3g}",
            f"{law['bias_std']:.3g}",
            _percent(law["coverage"]),
        )
        for name, law in record.critics.items()
        if isinstance(law, dict)
    ]
    if not rows:
        return ""
    heading = ("", "realised return less predicted mean", "standard deviation over states", "within the 90 % interval")
    return f"""At the end of training, on {record.critics["episodes"]} evaluation episodes, whose ticks are not independent:

{_table(heading, rows)}"""


def _measured(calibration: Calibration) -> str:
    kinds: tuple[tuple[str, Scores], ...] = (
        ("corrected", calibration.corrected),
        ("raw", calibration.raw),
        ("critics that trained the policy, raw", calibration.training_critics),
    )
    coverage = [(name, *map(_share, scores.coverage)) for name, scores in kinds]
    width = [(name, *(f"{value:.3g}" for value in scores.width)) for name, scores in kinds]
    errors = [
        (name, f"{_number(scores.bias, '.3g')} from the {scores.centre}", _number(scores.crps, ".3g"))
        for name, scores in kinds
    ]
    levels = tuple(f"{_percent(level)} interval" for level in calibration.levels)
    energy = calibration.energy
    joint = (
        ""
        if energy is None
        else f"\n\nEnergy score of return and gradient together {energy.law:.3g}; a perfect law would have {energy.truth:.3g}."
    )
    return f"""On {calibration.test_episodes} fresh episodes ({calibration.test_ticks} ticks).
The correction was set by {calibration.episodes} others.
The realised discounted returns have mean {calibration.realised_mean:.4g} and standard deviation {calibration.realised_std:.3g}.
{INTERVALS}

![Coverage against nominal coverage, and PIT histogram](calibration.svg)

{_table(("share of returns held", *levels), coverage)}

{_table(("mean width, in reward", *levels), width)}

{_table(("in reward", "realised less predicted", "CRPS"), errors)}

The critics that trained the policy are pessimistic on purpose and are not served.{joint}"""


def _warning(calibration: Calibration | None) -> str:
    if calibration is None:
        return "Not measured, and no signal has a threshold."
    alarms = _table(
        ("signal", "threshold", "unit", "ticks above it, fresh episodes"),
        [
            _alarm("critics disagree", calibration.critic_disagreement, "reward"),
            _alarm("far from the training data", calibration.data_distance, "standard deviations of its channels"),
        ],
    )
    calm = "" if calibration.thresholds_with_falls else ", among those not about to fall,"
    return f"""{_curves(calibration)}

Two signals have thresholds. In the training task a tick drawn at random{calm} exceeds each
with a probability of at most {_percent(calibration.false_alarm_rate)}.
A single tick above one says little, a run of them that something is new.

{alarms}

They are false-alarm rates, not detection rates: how many faults they catch was not measured."""


def _curves(calibration: Calibration) -> str:
    if not calibration.warnings:
        return f"{calibration.falls} of {calibration.test_episodes} test episodes fell. No curve: {calibration.no_warnings}."
    rows = [
        (SIGNALS.get(found.signal, found.signal), f"`{found.signal}`", _number(found.auc, ".2f"))
        for found in sorted(calibration.warnings, key=lambda found: -found.auc.value)
    ]
    return f"""{calibration.falls} of {calibration.test_episodes} test episodes fell.
How well does each signal tell, tick by tick, that a fall comes within {calibration.failure_horizon_s:g} s
({calibration.failure_horizon_steps} decisions)? The area is 1 if every tick before a fall had the higher signal, 0.5 by chance.
In brackets: bootstrap intervals over episodes that hold for all signals together with 95 %.

![ROC curves of the signals and the areas under them](warning.svg)

{_table(("signal", "value", "area under the ROC curve"), rows)}"""


def _alarm(name: str, found: Threshold, unit: str) -> tuple[str, str, str, str]:
    return name, f"{found.value:.4g}", unit, _share(found.alarm_rate)


def _limits(manifest: dict[str, Any], calibration: Calibration | None) -> str:
    lines = [
        "Trained and evaluated in simulation only.",
        f"It knows {manifest['task']['environment']} with the disturbances named above, and nothing else.",
        "Outside the range seen in training its actions and its uncertainty are extrapolation.",
        "The law follows a learned model of the task: what the model has not seen, the law does not know.",
    ]
    if calibration is None:
        lines.append("No quantile, threshold or warning signal was checked against episodes set aside for it.")
    else:
        lines.append(
            "Coverage is an average over episodes and their ticks; on a robot that differs from the simulator it does not hold."
        )
    lines.append(
        "It does not replace a guard: limits on actions, stale decisions and emergency stops are the robot's own."
    )
    return "\n".join(f"- {line}" for line in lines)


def _versions(manifest: dict[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in manifest["libraries"].items())


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


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(returns: Sequence[float]) -> Estimate:
    return estimate(np.array(returns), np.arange(len(returns)))


def _number(found: Estimate, form: str = ".4g") -> str:
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


def _share(found: Estimate) -> str:
    return f"{100 * found.value:.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
