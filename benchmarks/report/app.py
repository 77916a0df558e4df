"""dst-report: write the page of an experiment's results."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.results import read_results
from benchmarks.report.claims import claims
from benchmarks.report.errors import ReportError
from benchmarks.report.figures import write_figures
from benchmarks.report.page import render
from benchmarks.report.study import study_of

DESCRIPTION = """Write the page of the results that dst-experiment left in DIR: tables, figures, and claims with their verdicts.

examples:
  dst-report docs/results                                       (writes docs/results.md and docs/results/figures)
  dst-report runs/quick --out runs/quick-page.md --reference td3

Exit codes: 0 written, 2 refused with the reason, 130 Ctrl-C.
"""
FIGURES = "figures"
GRID_FILES = ("grid.toml", "quick.toml")


@dataclass(frozen=True, kw_only=True)
class Report:
    """See DESCRIPTION."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory with results.parquet and curves.parquet."""
    out: Path | None = None
    """Page to write, PAGE.md, with figures in PAGE/figures; DIR.md beside DIR unless given."""
    reference: str = "dst"
    """Variant that the others are held against."""

    def __post_init__(self) -> None:
        if self.out is not None and self.out.suffix != ".md":
            raise ValueError(f"--out must end in .md, got {self.out}")


def main() -> int:
    """Entry point of `dst-report`."""
    try:
        run(tyro.cli(Report, prog="dst-report", description=DESCRIPTION))
    except (ReportError, ExperimentError) as error:
        print(f"dst-report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"dst-report: cannot write {error.filename}: {error.strerror}; choose another --out", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def run(report: Report) -> None:
    """Write the page and its figures, and say what became of the claims.

    Raises:
        ExperimentError: if the tables cannot be read.
        ReportError: if there is nothing to report.
        OSError: if the page cannot be written.
    """
    directory = report.directory.resolve()
    out = (report.out or directory.with_name(f"{directory.name}.md")).resolve()
    console = Console(stderr=True)
    with console.status("computing") as status:
        study = study_of(read_results(report.directory), reference=report.reference)
        named = _as_named(directory)
        grid = next((name for name in GRID_FILES if (directory / name).exists()), None)
        text = render(
            study,
            directory=named,
            grid=f"{named}/{grid}" if grid else "GRID.toml",
            figures=f"{out.stem}/{FIGURES}",
            flags=_flags(report),
        )
        status.update("drawing")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_figures(study, out.with_suffix("") / FIGURES)
        out.write_text(text, encoding="utf-8")
    for claim in claims(study):
        console.print(f"[bold]{claim.verdict:>10}[/bold]  {claim.claim}: {claim.finding}", highlight=False)
    console.print(f"{len(study.runs)} runs reported in {os.path.relpath(out)}", highlight=False)


def _flags(report: Report) -> str:
    flags = "" if report.out is None else f" --out {_as_named(report.out)}"
    return flags + ("" if report.reference == "dst" else f" --reference '{report.reference}'")


def _as_named(path: Path) -> str:
    """Relative to where the command runs, if it lies there; else its name alone, since a page is read elsewhere."""
    absolute, here = path.resolve(), Path.cwd()
    return absolute.relative_to(here).as_posix() if absolute.is_relative_to(here) else absolute.name


if __name__ == "__main__":
    sys.exit(main())
