"""What ran, on what, and what is missing."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable

import polars as pl

from benchmarks.report.markdown import bullets, table
from benchmarks.report.runs import Run, Setting
from benchmarks.report.study import Study


def summary(study: Study) -> str:
    """One sentence."""
    runs = study.runs
    states = Counter(run.status for run in runs)
    counts = ", ".join(f"{states[status]} {status}" for status in ("finished", "diverged", "failed"))
    hours = study.results.runs["cpu_seconds"].fill_null(0).fill_nan(0).sum() / 3600
    return (
        f"{len(runs)} runs ({counts}) of {len(study.variants)} variants in {len({run.cell.setting for run in runs})} settings, "
        f"{hours:.1f} CPU hours of training. A setting is an environment with its perturbation."
    )


def overview(study: Study) -> str:
    """Coverage, versions, machines, and every run that is missing or ended early, by name."""
    parts = [
        "Seeds that count x environment steps asked for:",
        _coverage(study),
        bullets(_circumstances(study)),
        "Runs that did not finish:",
        bullets(_unfinished(study.runs)) or "None.",
        "Missing seeds, which another variant of the same setting has:",
        bullets(_missing(study)) or "None.",
    ]
    if blank := [f"{run.name}: {run.blank}" for run in study.runs if run.blank]:
        parts += ["Evaluations without a finite return, left out of their curves:", bullets(blank)]
    if study.not_compared:
        parts += ["Not compared:", bullets(f"{setting}: {why}" for setting, why in study.not_compared)]
    return "\n\n".join(parts)


def missing_seeds(runs: Iterable[Run]) -> dict[str, dict[int, str]]:
    """Of the runs of one setting: variant to seed to why that seed does not count, though it does for another variant.

    A variant whose seeds all count is left out.
    """
    members: dict[str, dict[int, Run]] = defaultdict(dict)
    for run in runs:
        members[run.cell.variant][run.seed] = run
    wanted = sorted({run.seed for of_variant in members.values() for run in of_variant.values()})
    missing = {
        variant: {
            seed: of_variant[seed].why_left_out if seed in of_variant else "not in the results"
            for seed in wanted
            if seed not in of_variant or of_variant[seed].why_left_out
        }
        for variant, of_variant in members.items()
    }
    return {variant: seeds for variant, seeds in missing.items() if seeds}


def _coverage(study: Study) -> str:
    asked = dict(study.results.runs.select("run", "steps").iter_rows())
    rows = []
    for setting, runs in _by_setting(study).items():
        groups: dict[str, list[str]] = defaultdict(list)
        for variant in study.variants:
            members = [run for run in runs if run.cell.variant == variant]
            steps = " or ".join(str(count) for count in sorted({asked[run.name] for run in members}))
            if members:
                groups[f"{sum(not run.why_left_out for run in members)} x {steps}"].append(variant)
        told = "<br>".join(f"{size}: {' · '.join(variants)}" for size, variants in groups.items())
        rows.append([setting.environment, setting.perturbation, told])
    return table(["environment", "perturbation", "variants"], rows, left=3)


def _by_setting(study: Study) -> dict[Setting, list[Run]]:
    settings: dict[Setting, list[Run]] = defaultdict(list)
    for run in study.runs:
        settings[run.cell.setting].append(run)
    return {setting: settings[setting] for setting in sorted(settings, key=lambda setting: setting.order)}


def _circumstances(study: Study) -> list[str]:
    runs = study.results.runs
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in study.runs}))
    lines = [f"Seeds: {seeds}"]
    lines += [f"Machine: {machine} ({count} runs)" for machine, count in _distinct(runs["machine"])]
    for text, count in _distinct(runs["versions"]):
        versions = json.loads(text)
        lines.append(", ".join(f"{name} {version}" for name, version in versions.items()) + f" ({count} runs)")
    return lines


def _distinct(column: pl.Series) -> list[tuple[str, int]]:
    return sorted(Counter(str(value) for value in column).items())


def _unfinished(runs: Iterable[Run]) -> list[str]:
    return [
        f"{run.name} {run.status}{f': {run.error}' if run.error else ''}" for run in runs if run.status != "finished"
    ]


def _missing(study: Study) -> list[str]:
    lines = []
    for setting, runs in _by_setting(study).items():
        for variant, seeds in missing_seeds(runs).items():
            by_reason: dict[str, list[str]] = defaultdict(list)
            for seed, why in seeds.items():
                by_reason[why].append(str(seed))
            told = "; ".join(f"{', '.join(those)} {why}" for why, those in by_reason.items())
            lines.append(f"{setting}, {variant}: {told}")
    return lines
