"""`dst-inspect`: what a bundle is, and in what two versions differ. Exit codes: 0 done, 2 refused."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from server.bundle import Bundle, load_bundle
from server.bundle_difference import BundleDifference, Gap, bundle_difference
from server.errors import ServingError
from server.graph_size import graph_size
from server.manifest import Calibration, ChannelLimits, Manifest, Scores, limit
from server.runtime import Runtime
from server.served_policy import ServedPolicy

GRAPHS = ("actor.onnx", "uncertainty.onnx", "policy.onnx")
EXAMPLES = """Verify a bundle and show what it is, or in what it differs from another one.

Examples:
  dst-inspect bundles/hopper
  dst-inspect bundles/hopper --diff bundles/hopper-next
  dst-inspect bundles/hopper --diff bundles/hopper-next --json | jq .difference.gaps

Exit codes: 0 done, 2 refused."""
SHOWN_ROWS = 24
"""Of each table; `--json` shows all."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What to show."""

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Directory that dst-export wrote."""
    diff: Annotated[Path | None, tyro.conf.arg(metavar="OTHER")] = None
    """Another bundle: show the differences in contract, configuration, calibration, actions and laws."""
    json: bool = False
    """Print JSON, for programs."""


@dataclass(frozen=True, kw_only=True)
class Inspected:
    """A bundle whose hashes agree and whose golden data were reproduced here."""

    bundle: Bundle
    """Its content."""
    runtime: Runtime
    """Its graphs, loaded on the CPU."""


def inspected(path: Path) -> Inspected:
    """Loads a bundle and verifies it as the server would.

    Raises:
        BundleError: names the file, the reason and the cure.
    """
    bundle = load_bundle(path)
    return Inspected(bundle=bundle, runtime=Runtime(bundle, "cpu"))


def document(one: Inspected) -> dict[str, Any]:
    """What is shown of a bundle, as JSON values."""
    bundle = one.bundle
    manifest = bundle.manifest.model_dump(mode="json")
    hashes = manifest.pop("files")
    policy = ServedPolicy(one.runtime, inline_below_s=math.inf)
    return {
        "path": str(bundle.path),
        **manifest,
        "contract": policy.fingerprint,
        "verified": {"files": len(hashes), "golden_observations": len(bundle.golden["observation"])},
        "files": {name: {"bytes": len(bundle.files[name]), "sha256": digest} for name, digest in hashes.items()},
        "graphs": {name: asdict(graph_size(bundle.files[name])) for name in GRAPHS},
    }


def show(console: Console, shown: Mapping[str, Any], manifest: Manifest) -> None:
    """Prints a bundle for people."""
    console.rule(Text(f"{manifest.name} {manifest.version[:12]}"), align="left")
    verified = shown["verified"]
    _pairs(
        console,
        {
            "bundle": shown["path"],
            "verified": f"SHA-256 of {verified['files']} files; graphs reproduce {verified['golden_observations']} golden "
            "observations",
            "task": " ".join((manifest.task.environment, *manifest.task.perturbations)),
            "trained": f"{manifest.training.get('steps', '?')} steps, seed {manifest.training.get('seed', '?')}",
            "evaluated": f"return {manifest.evaluation.return_mean:.6g} ± {manifest.evaluation.return_std:.3g} over "
            f"{manifest.evaluation.episodes} episodes, least {manifest.evaluation.return_min:.6g}; "
            f"untrained {manifest.evaluation.untrained_return_mean:.6g}",
            "control period": f"{manifest.control_period_s:g} s",
            "contract": shown["contract"],
        },
    )
    channel_column = Column("channel", no_wrap=True)
    table = Table("", channel_column, "unit", "limits", "in training", title="Contract", title_justify="left")
    rows: list[Sequence[str]] = [
        (
            f"observation {index}",
            channel.name,
            channel.unit,
            _limits(channel),
            f"{manifest.observed_range.low[index]:.4g} to {manifest.observed_range.high[index]:.4g}",
        )
        for index, channel in enumerate(manifest.observation)
    ]
    rows[SHOWN_ROWS:] = [("", f"and {len(rows) - SHOWN_ROWS} more", "", "", "")] if len(rows) > SHOWN_ROWS else []
    rows += [
        (f"action {index}", channel.name, channel.unit, _limits(channel), "")
        for index, channel in enumerate(manifest.action)
    ]
    _print(console, table, rows)
    table = Table("graph", "bytes", "nodes", "stored numbers", title="Graphs", title_justify="left")
    _print(
        console, table, [(name, *(f"{value:,}" for value in size.values())) for name, size in shown["graphs"].items()]
    )
    law = manifest.uncertainty
    _pairs(
        console,
        {
            "return": f"discount {law.discount:g}, {law.sample_count} samples, threshold {law.return_threshold:g}",
            "quantile levels": ", ".join(f"{level:g}" for level in law.return_quantile_levels),
            "worst case": f"mean of the worst {_percent(law.cvar_level)}",
            "data distance": f"to {law.reference_observations} observations of the training data",
            "sensor gradient": "served" if law.observation_gradient else "not served",
        },
    )
    _show_calibration(console, manifest.calibration)


def _show_calibration(console: Console, calibration: Calibration | None) -> None:
    if calibration is None:
        console.print(
            "not calibrated: the stated ranges are the critics' own belief; export the run again without --uncalibrated",
            style="yellow",
        )
        return
    title = f"Calibration: corrected from {calibration.episodes} episodes, measured on {calibration.test_episodes} fresh ones"
    table = Table("interval", "raw held", "raw width", "corrected held", "width", title=title, title_justify="left")
    rows = []
    for index, level in enumerate(calibration.levels):
        cells = [
            cell
            for scores in (calibration.raw, calibration.corrected)
            for cell in (_held(scores, index), f"{scores.width[index]:.4g}")
        ]
        rows.append((_percent(level), *cells))
    for name in ("crps", "bias"):
        values = [f"{getattr(scores, name):.4g}" for scores in (calibration.raw, calibration.corrected)]
        rows.append((name.upper() if name == "crps" else name, values[0], "", values[1], ""))
    _print(console, table, rows)
    _pairs(
        console,
        {
            "critic disagreement": f"warns above {calibration.critic_disagreement_threshold:.4g}",
            "data distance": f"warns above {calibration.data_distance_threshold:.4g}",
            "false alarms": f"on average at most {_percent(calibration.false_alarm_rate)} of ordinary ticks, each; act on a run of ticks",
        },
    )


def show_difference(console: Console, first: Manifest, second: Manifest, difference: BundleDifference) -> None:
    """Prints for people in what two bundles differ."""
    names = [f"{manifest.name} {manifest.version[:12]}" for manifest in (first, second)]
    console.rule(Text(f"{names[0]} and {names[1]}"), align="left")
    for section, changes in difference.changes.items():
        if not changes:
            console.print(f"{section}: no difference")
            continue
        table = Table("", "first", "second", title=f"{section}: {len(changes)} different", title_justify="left")
        rows = [(change.what, _value(change.first), _value(change.second)) for change in changes[:SHOWN_ROWS]]
        if len(changes) > SHOWN_ROWS:
            rows.append((f"and {len(changes) - SHOWN_ROWS} more; --json shows all", "", ""))
        _print(console, table, rows)
    if difference.gaps:
        title = f"answers to the {difference.observations} golden observations of both, absolute differences"
        columns = ("size", "served: mean", "max", "same action: mean", "max")
        table = Table(Column("output", no_wrap=True), *columns, title=title, title_justify="left")
        _print(
            console,
            table,
            [
                (gap.output, f"{gap.size:.3g}", *_gap_cells(gap.served), *_gap_cells(gap.same_action))
                for gap in difference.gaps
            ],
        )
    for note in difference.notes:
        console.print(note, markup=False)


def _gap_cells(gap: Gap | None) -> tuple[str, str]:
    return ("", "") if gap is None else (f"{gap.mean:.3g}", f"{gap.largest:.3g}")


def _held(scores: Scores, index: int) -> str:
    held, low, high = (100 * values[index] for values in (scores.coverage, scores.coverage_low, scores.coverage_high))
    return f"{held:.1f} % ({low:.1f} to {high:.1f})"


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _limits(channel: ChannelLimits) -> str:
    if channel.low is None and channel.high is None:
        return "unbounded"
    return f"{limit(channel.low, -math.inf):g} to {limit(channel.high, math.inf):g}"


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _print(console: Console, table: Table, rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _pairs(console: Console, pairs: Mapping[str, str]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    _print(console, table, list(pairs.items()))


def inspect(config: InspectConfig, console: Console) -> None:
    """Verifies and prints one bundle, or what two differ in.

    Raises:
        BundleError: a bundle is refused.
        InferenceError: a bundle has no usable answer to a golden observation of the other.
    """
    one = inspected(config.bundle)
    shown = {"bundle": document(one)}
    if config.diff is not None:
        other = inspected(config.diff)
        difference = bundle_difference(one.bundle, one.runtime, other.bundle, other.runtime)
        shown |= {"other": document(other), "difference": asdict(difference)}
    if config.json:
        sys.stdout.write(json.dumps(shown, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    elif config.diff is None:
        show(console, shown["bundle"], one.bundle.manifest)
    else:
        show_difference(console, one.bundle.manifest, other.bundle.manifest, difference)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    config = tyro.cli(
        InspectConfig,
        prog="dst-inspect",
        description=EXAMPLES,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    try:
        inspect(config, Console(highlight=False))
    except ServingError as error:
        sys.stderr.write(f"dst-inspect: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
