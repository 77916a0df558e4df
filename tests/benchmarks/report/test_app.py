"""dst-report from the command line, on good and bad directories."""

import sys
from pathlib import Path

import polars as pl
import pytest

from benchmarks.experiments.results import (
    CURVES_FILE,
    RESULTS_FILE,
    VERSION_KEY,
    Results,
    no_results,
    read_results,
    write_results,
)
from benchmarks.report.app import main
from tests.benchmarks.report.tables import made_run, results, seeds


def write(directory: Path, tables: Results) -> Path:
    write_results(directory, runs=tables.runs, curves=tables.curves)
    return directory


def report(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["dst-report", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    try:
        return main()
    except SystemExit as ended:
        return int(ended.code or 0)


def test_page_figures_and_tables_stand_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "runs" / "x", results([*seeds([1.0, 2.0]), *seeds([1.0, 3.0], variant="td3")]))
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "docs" / "results" / "grid.toml").touch()
    assert report(monkeypatch, "runs/x", "--out", "docs/results.md") == 0
    page, beside = tmp_path / "docs" / "results.md", tmp_path / "docs" / "results"
    text = page.read_text(encoding="utf-8")
    assert "dst-experiment docs/results/grid.toml --out runs/results\n" in text
    assert "dst-report runs/results --out docs/results.md\n" in text
    assert "(results/figures/curves.svg)" in text
    assert (beside / "figures" / "curves.svg").is_file()
    for name in (RESULTS_FILE, CURVES_FILE):
        assert (beside / name).read_bytes() == (tmp_path / "runs" / "x" / name).read_bytes()
    assert not (tmp_path / "runs" / "x" / "figures").exists(), "those of another page stay as they are"
    shown = capsys.readouterr().err
    assert "not tested" in shown
    assert "4 runs reported in docs/results.md" in shown
    page.unlink()
    assert report(monkeypatch, "docs/results") == 0
    assert page.read_text(encoding="utf-8") == text, "the copy gives the same page"


def test_notes_beside_the_page_are_a_section_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x", results(seeds([1.0, 2.0])))
    assert report(monkeypatch, "x") == 0
    bare = (tmp_path / "x.md").read_text(encoding="utf-8")
    (tmp_path / "x" / "notes.md").write_text("What was tuned: nothing.\n", encoding="utf-8")
    assert report(monkeypatch, "x") == 0
    noted = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert "\n## Notes\n\nWhat was tuned: nothing.\n\n## What ran\n" in noted
    assert "all numbers but those of the notes from there." in noted
    assert "notes" not in bare


def test_tables_of_another_experiment_are_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("x", "y"):
        write(tmp_path / name, results(seeds([1.0])))
        (tmp_path / name / "runs").mkdir()
    (tmp_path / "y" / CURVES_FILE).write_bytes(b"kept")
    assert report(monkeypatch, "x", "--out", "y.md") == 2
    assert "y is the directory of another experiment; choose another --out" in capsys.readouterr().err
    assert (tmp_path / "y" / CURVES_FILE).read_bytes() == b"kept"
    assert not (tmp_path / "y.md").exists()
    assert report(monkeypatch, "x") == 0, "an experiment's own page stands beside it"


def test_reference_is_part_of_the_command_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x", results(seeds([1.0], variant="td3, slow") + seeds([1.0], variant="td3")))
    assert report(monkeypatch, "x", "--reference", "td3") == 0
    text = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert "dst-experiment GRID --out runs/x\ndst-report runs/x --out x.md --reference td3\n" in text


def test_page_names_no_directory_outside_the_one_it_is_made_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "x", results(seeds([1.0])))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert report(monkeypatch, tmp_path / "x", "--out", tmp_path / "p.md") == 0
    assert str(tmp_path) not in (tmp_path / "p.md").read_text(encoding="utf-8")


def another_version(directory: Path) -> None:
    tables = write_and_read(directory)
    tables.runs.write_parquet(directory / RESULTS_FILE, metadata={VERSION_KEY: "999"})


def damaged(directory: Path) -> None:
    write_and_read(directory)
    (directory / CURVES_FILE).write_bytes(b"PAR1 no more")


def write_and_read(directory: Path) -> Results:
    return read_results(write(directory, results(seeds([1.0, 2.0]))))


def without_evaluations(directory: Path) -> None:
    write(directory, results([made_run({}, status="failed", error="no memory")]))


def without_curves(directory: Path) -> None:
    tables = results(seeds([1.0]))
    write(directory, Results(runs=tables.runs, curves=pl.DataFrame(schema=tables.curves.schema)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda directory: None, "is missing"),
        (another_version, "version 999"),
        (damaged, "is damaged"),
        (lambda directory: write(directory, no_results()), "hold no run; let dst-experiment finish"),
        (without_evaluations, "no run has an evaluation"),
        (without_curves, "has no evaluation of"),
        (lambda directory: write(directory, results(seeds([1.0], variant="td3"))), "--reference: td3"),
    ],
)
def test_directories_without_reportable_results_exit_2_with_the_cure_and_write_nothing(
    make, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "x")
    assert report(monkeypatch, tmp_path / "x") == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not (tmp_path / "x.md").exists()
    assert not (tmp_path / "x" / "figures").exists()


def test_page_that_cannot_be_written_exits_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "x", results(seeds([1.0])))
    (tmp_path / "file").touch()
    assert report(monkeypatch, tmp_path / "x", "--out", tmp_path / "file" / "p.md") == 2
    assert "choose another --out" in capsys.readouterr().err
    assert report(monkeypatch, tmp_path / "x", "--out", tmp_path / "docs") == 2
    assert "--out must end in .md" in capsys.readouterr().err


def test_results_of_one_seed_diverged_runs_and_blank_returns_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [
        made_run({0: 0.0, 500: None, 1000: float("nan"), 1500: 2.0}, bias=None),
        made_run({}, variant="td3", status="diverged", error="not finite"),
        made_run({0: 0.0, 500: None}, variant="tqc"),
    ]
    write(tmp_path / "x", results(runs))
    assert report(monkeypatch, tmp_path / "x") == 0
    text = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert "PointMass1-v0/none/dst/seed-0: 2" in text
    assert "PointMass1-v0, none, tqc: 0 no evaluation after training began gave a finite return" in text
    assert "| td3 | 1 | 0.00 | - | - | - |" in text
