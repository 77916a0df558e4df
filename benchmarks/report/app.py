"""dst-report: write the page of an experiment's results."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import tyro
from rich.console import Console

from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.results import CURVES_FILE, RESULTS_FILE, RUNS_DIRECTORY, read_results, write_results
from benchmarks.report.claims import claims
from benchmarks.report.errors import ReportError
from benchmarks.report.figures import write_figures
from benchmarks.report.page import FIGURES, page
from benchmarks.report.study import REFERENCE, study_of

GRID_FILE = "grid.toml"
NOTES_FILE = "notes.md"
DESCRIPTION = f"""Write the page of the results that dst-experiment left in DIR: tables, figures, and claims with their verdicts.

examples:
  dst-report runs/results --out docs/results.md   (also docs/results/{FIGURES}, and a copy of the tables in docs/results)
  dst-report docs/results                         (the same page again, from that copy)
  dst-report runs/quick --reference td3           (runs/quick.md and runs/quick/{FIGURES})

A page, its figures and the tables it is made from always stand together: PAGE.md, PAGE/{FIGURES}, PAGE/{RESULTS_FILE} and
PAGE/{CURVES_FILE}. dst-experiment --out PAGE counts the runs in these tables as done. PAGE/{NOTES_FILE}, Markdown by hand, is a
section of the page where it exists.

Exit codes: 0 written, 2 refused with the reason, 130 Ctrl-C.
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """See DESCRIPTION."""

    directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")]
    """Directory with the two tables."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PAGE.md")] = None
    """Page to write; DIR.md beside DIR unless given."""
    reference: Annotated[str, tyro.conf.arg(metavar="VARIANT")] = REFERENCE
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
    """Write the page, its figures and the tables beside it, and say what became of the claims.

    Raises:
        ExperimentError: if the tables cannot be read or written.
        ReportError: if there is nothing to report, or the tables would replace another experiment's.
        OSError: if the page or its figures cannot be written.
    """
    directory = report.directory.resolve()
    out = (report.out or directory.with_name(f"{directory.name}.md")).resolve()
    beside = out.with_suffix("")
    if beside != directory and (beside / RUNS_DIRECTORY).exists():
        raise ReportError(f"{_as_named(beside)} is the directory of another experiment; choose another --out")
    console = Console(stderr=True)
    with console.status("computing") as status:
        study = study_of(read_results(report.directory), reference=report.reference)
        grid, notes = beside / GRID_FILE, beside / NOTES_FILE
        text = page(
            study,
            out=_as_named(out),
            grid=str(_as_named(grid)) if grid.exists() else "GRID",
            notes=notes.read_text(encoding="utf-8") if notes.exists() else "",
        )
        status.update("drawing")
        out.parent.mkdir(parents=True, exist_ok=True)
        write_figures(study, beside / FIGURES)
        if beside != directory:
            write_results(beside, runs=study.results.runs, curves=study.results.curves)
        out.write_text(text, encoding="utf-8")
    for claim in claims(study):
        console.print(f"[bold]{claim.verdict:>10}[/bold]  {claim.claim}: {claim.finding}", highlight=False)
    console.print(f"{len(study.runs)} runs reported in {os.path.relpath(out)}", highlight=False)


def _as_named(path: Path) -> PurePosixPath:
    """Relative to where the command runs, if it lies there; else its name alone, since a page is read elsewhere."""
    here = Path.cwd()
    return PurePosixPath(path.relative_to(here).as_posix() if path.is_relative_to(here) else path.name)


if __name__ == "__main__":
    sys.exit(main())
