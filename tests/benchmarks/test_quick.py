"""The reduced grid from the command line to its page, and on from the tables that stand beside it."""

import sys
from pathlib import Path

import pytest

from benchmarks.experiments import app as experiment
from benchmarks.experiments.results import read_results
from benchmarks.report import app as report


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_quick_grid_runs_to_a_page_whose_tables_need_no_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)

    def call(main, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["a command", *arguments])
        return main()

    assert call(experiment.main, "--quick", "--out", "runs/quick") == 0
    assert call(report.main, "runs/quick", "--out", "docs/quick.md") == 0
    text = (tmp_path / "docs" / "quick.md").read_text(encoding="utf-8")
    assert "28 runs (28 finished, 0 diverged, 0 failed) of 4 variants in 4 settings" in text
    for name in ("curves", "time", "improvement", "ablations"):
        assert (tmp_path / "docs" / "quick" / "figures" / f"{name}.svg").is_file()
    tables = read_results(tmp_path / "docs" / "quick")
    assert tables.runs.equals(read_results(tmp_path / "runs" / "quick").runs)
    assert tables.curves.equals(read_results(tmp_path / "runs" / "quick").curves)
    capsys.readouterr()
    assert call(experiment.main, "--quick", "--out", "docs/quick") == 0
    assert "28 of 28 runs finished" in capsys.readouterr().out
    assert not (tmp_path / "docs" / "quick" / "runs").exists()
