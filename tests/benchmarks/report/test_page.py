"""The page: pure, complete, and the one that is committed."""

import itertools
import re
from pathlib import Path, PurePosixPath

import pytest

from benchmarks.experiments.results import RESULTS_FILE, Results, read_results
from benchmarks.report.app import NOTES_FILE
from benchmarks.report.page import page
from benchmarks.report.study import study_of
from tests.benchmarks.report.tables import flat, made_run, results, seeds

DOCS = Path(__file__).resolve().parents[3] / "docs"
GRID = "docs/results/grid.toml"


def some_results():
    runs = [
        *seeds([8.0, 9.0, 10.0], bias=0.5),
        *seeds([5.0, 6.0, 7.0], variant="td3"),
        *seeds([3.0, 4.0], variant="dst, flow"),
    ]
    runs.append(made_run({0: 0.0, 500: 1.0}, variant="td3", seed=3, status="diverged", error="loss is not finite"))
    runs.append(made_run(flat(1.0), variant="td3", seed=4, status="failed", error="no memory"))
    return results([*runs, *seeds([4.0], perturbation="observation=0.2")])


def page_of(
    tables: Results, *, reference: str = "dst", out: str = "docs/results.md", grid: str = GRID, notes: str = ""
) -> str:
    return page(study_of(tables, reference=reference), out=PurePosixPath(out), grid=grid, notes=notes)


def test_the_same_tables_give_the_same_page() -> None:
    assert page_of(some_results()) == page_of(some_results())


def test_page_tells_all_of_it() -> None:
    text = page_of(some_results())
    for part in (
        "11 runs (9 finished, 1 diverged, 1 failed) of 3 variants in 2 settings",
        "PointMass1-v0/none/td3/seed-3 diverged: loss is not finite",
        "PointMass1-v0/none/td3/seed-4 failed: no memory",
        "python 3.11.7, torch 2.13.0 (11 runs)",
        "Machine: a processor, 2 cores (11 runs)",
        "| dst | 3 of 4 | **9.0 (8.0 to 10.0)** | 1.00 | 0.500 | 20.0 |",
        "| dst | 1 | 4.00 | - | 0.00 | 20.0 |",
        "| dst, flow | 2 of 3 | 2000 |",
        "dst-experiment docs/results/grid.toml --out runs/results\ndst-report runs/results --out docs/results.md\n",
        "dst-train --env PointMass1-v0 --seed 0 --steps 2000 --agent.algorithm td3",
        "(results/figures/curves.svg)",
    ):
        assert part in text, part
    assert "None." not in text
    assert "nan" not in text.lower().replace("finance", "")


def test_every_section_is_named_and_every_table_is_whole() -> None:
    text = page_of(some_results())
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("|") and before.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == len(re.findall(r"(?<!\\)\|", before)), line
    assert [line for line in lines if line.startswith("## ")] == [
        f"## {title}"
        for title in (
            "Claims",
            "Over all settings",
            "Learning curves",
            "Interactions to reach a level",
            "Ablations",
            "What ran",
            "How the numbers are made",
            "Each setting",
            "Reproduce",
        )
    ]
    anchors = {title[3:].lower().replace(" ", "-") for title in lines if title.startswith("## ")}
    assert set(re.findall(r"\(#([\w-]+)\)", text)) <= anchors


def test_links_and_commands_are_those_of_the_page() -> None:
    text = page_of(some_results(), reference="dst, flow", out="x/p.md", grid="my grid.toml")
    assert "dst-experiment 'my grid.toml' --out runs/p\n" in text
    assert "dst-report runs/p --out x/p.md --reference 'dst, flow'\n" in text
    assert "(p/figures/curves.svg)" in text
    assert 'read_parquet("x/p/results.parquet")' in text
    assert "dst, flow over" in text


def test_committed_page_is_made_from_the_committed_tables() -> None:
    """Every number of docs/results.md is one of the tables beside it, but for the notes."""
    directory = DOCS / "results"
    if not (directory / RESULTS_FILE).exists():
        pytest.skip("docs/results has no results yet; dst-experiment makes them")
    notes = directory / NOTES_FILE
    made = page_of(read_results(directory), notes=notes.read_text(encoding="utf-8") if notes.exists() else "")
    assert (DOCS / "results.md").read_text(encoding="utf-8") == made, "run dst-report docs/results"
    for link in re.findall(r"\((results/figures/[^)]+)\)", made):
        assert (DOCS / link).is_file(), link
