"""The page of results, from the tables alone."""

import shlex
from collections.abc import Mapping
from pathlib import PurePosixPath

import polars as pl

from benchmarks.experiments.results import RESULTS_FILE
from benchmarks.report.ablations import ablation_tables
from benchmarks.report.aggregate import aggregate_tables
from benchmarks.report.claims import claims_section
from benchmarks.report.figures import plots
from benchmarks.report.interactions import interactions_tables
from benchmarks.report.markdown import folded
from benchmarks.report.overview import overview, summary
from benchmarks.report.scores import LEVEL, WINDOW
from benchmarks.report.settings import setting_tables
from benchmarks.report.statistics import DRAWS
from benchmarks.report.study import REFERENCE, Study

FIGURES = "figures"
"""Directory of the figures, beside the tables."""


def page(study: Study, *, out: PurePosixPath, grid: str, notes: str = "") -> str:
    """Markdown; the same tables and names give the same text.

    Args:
        study: the results, grouped.
        out: PAGE.md as commands name it; the tables are in PAGE beside it, the figures in PAGE/figures.
        grid: file of the experiment, likewise.
        notes: Markdown by hand, of what the tables do not say.
    """
    tables = out.with_suffix("")
    figures = f"{tables.name}/{FIGURES}"
    images = {plot.name: _image(plot.name, plot.caption, figures) for plot in plots(study)}
    sections = {
        "Claims": [claims_section(study)],
        "Over all settings": [aggregate_tables(study), *_some(images, "improvement")],
        "Learning curves": [*_some(images, "curves", "time")],
        "Interactions to reach a level": [_interactions(study)],
        "Ablations": [ablation_tables(study), *_some(images, "ablations")],
        "Notes": [notes.strip()],
        "What ran": [overview(study)],
        "How the numbers are made": [_method(study)],
        "Each setting": [setting_tables(study)],
        "Reproduce": [_reproduce(study, out=out, grid=grid)],
    }
    source = "all numbers but those of the notes from there" if notes else "all numbers from there"
    intro = (
        f"Made by `dst-report` from the tables in `{tables}`, {source}. {summary(study)} "
        "Intervals are 95 % bootstrap intervals over seeds; [How the numbers are made](#how-the-numbers-are-made) defines every term."
    )
    parts = ["# Results", intro]
    for title, content in sections.items():
        if any(content):
            parts += [f"## {title}", *(part for part in content if part)]
    return "\n\n".join(parts) + "\n"


def _image(name: str, caption: str, figures: str) -> str:
    return f"![{caption}]({figures}/{name}.svg)\n\n{caption} [PNG]({figures}/{name}.png)"


def _some(images: Mapping[str, str], *names: str) -> list[str]:
    return [images[name] for name in names if name in images]


def _interactions(study: Study) -> str:
    return f"""\
The level is {LEVEL * 100:.0f} % of the way from the untrained return to the best variant's IQM at equal interactions. A run reaches it at
the first evaluation at which its score so far is at least the level; one that does not within equal interactions is counted as
needing more. Where half of the runs or more do not reach it, the ratio of medians is known only as above or below a number,
and the interval covers all that it may be (∞: no upper end).

{interactions_tables(study)}"""


def _method(study: Study) -> str:
    return f"""\
- **Score of a run**: mean return of its last {WINDOW} evaluations after step 0 within the budget (of all of them if there are
  fewer, of that at step 0 if there are none). Returns are undiscounted sums of rewards per episode, on seeds that training
  never uses, without exploration noise.
- **Equal interactions**: the environment steps at which the finished run of the comparison that ends first was evaluated last.
- **Equal computing time**: the CPU seconds of training that the finished run of the comparison that took least had taken at its
  last evaluation. An evaluation is within it if training had taken no more until then; evaluations themselves are not counted.
- **Comparison**: all algorithms of a setting; or an algorithm and its ablations in a setting. Each has budgets of its own.
- **Runs that diverged count**: one that ended within the budget gets the untrained return, or its own score if that is lower.
  Runs that failed, stopped by something else than learning, do not count and are named.
- **IQM**: interquartile mean over seeds, the mean without the lowest and the highest quarter (rounded down).
- **Intervals**: 95 %, percentiles of {DRAWS} stratified bootstrap draws with the `rliable` library (Agarwal et al., NeurIPS 2021):
  the runs of every variant in every setting are drawn anew on their own. They are made with as many seeds as the tables say;
  "3 of 5" marks fewer than another variant of the comparison has. With few seeds they are rough, and rather too narrow than
  too wide. One seed has no interval.
- **Spread**: standard deviation of the scores over seeds. **Critic bias**: Monte-Carlo return less the critic's mean over the
  scored evaluations, mean over seeds; positive where the critic is pessimistic. **CPU s**: CPU seconds of training until the
  last scored evaluation, mean over the seeds that were not cut short by divergence.
- **Normalised score**: 0 is the untrained return (mean at step 0 over all runs of the setting), 1 the best IQM of the comparison
  at equal interactions; both are taken as known. Averages over settings weigh every run alike.
- **Probability of improvement**: the share of pairs of a run of {study.reference} and a run of the other in which the former
  scores higher, ties half, averaged over settings."""


def _reproduce(study: Study, *, out: PurePosixPath, grid: str) -> str:
    runs = study.results.runs
    commands = "\n".join(str(runs.filter(pl.col("variant") == variant)["command"][0]) for variant in study.variants)
    directory = f"runs/{out.stem}"
    reference = () if study.reference == REFERENCE else ("--reference", study.reference)
    return f"""\
The whole page:

```sh
{shlex.join(("dst-experiment", grid, "--out", directory))}
{shlex.join(("dst-report", directory, "--out", str(out), *reference))}
```

A single row is one run of `dst-train`. Its command is in the column `command` of `{RESULTS_FILE}`, for instance:

```python
import polars

runs = polars.read_parquet("{out.with_suffix("") / RESULTS_FILE}")
run = polars.col("run") == "{study.runs[0].name}"
print(runs.row(by_predicate=run, named=True)["command"])
```

{folded("The command of one run of each variant", f"```sh{chr(10)}{commands}{chr(10)}```")}"""
