"""`make demo`: it runs to its end without a terminal, and an interruption at any point leaves nothing running."""

import importlib.util
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def processes_of_session(session: int) -> list[str]:
    """Command lines of the live processes that a session's leader started, itself included."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(its_session) == session and state != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


class Demo:
    """deploy/demo.py without a terminal, in a session of its own."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "deploy" / "demo.py")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.output = ""

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"{text!r} did not come:\n{self.output}")

    def finish(self) -> int:
        assert self.process.stdout is not None
        with self.process.stdout:
            self.output += self.process.stdout.read()
        return self.process.wait()

    @property
    def directory(self) -> Path:
        match = re.search(r"--out (\S+)/run$", self.output, re.MULTILINE)
        assert match is not None, self.output
        return Path(match[1])


@pytest.fixture
def demo() -> Iterator[Demo]:
    demo = Demo()
    yield demo
    if demo.process.poll() is None:
        demo.process.terminate()
        demo.finish()
    assert demo.directory.parent == ROOT / "runs"
    shutil.rmtree(demo.directory, ignore_errors=True)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("moment", "number", "code"),
    [
        ("$ dst-train", signal.SIGINT, 130),
        ("evaluation return", signal.SIGINT, 130),
        ("evaluation return", signal.SIGTERM, 143),
    ],
)
def test_interruption_during_training_leaves_nothing_running(
    demo: Demo, moment: str, number: signal.Signals, code: int
) -> None:
    demo.read_until(moment)
    if moment == "evaluation return":
        assert any("dst-train" in line for line in processes_of_session(demo.process.pid))
    demo.process.send_signal(number)
    assert demo.finish() == code, demo.output
    assert processes_of_session(demo.process.pid) == []
    assert "Traceback" not in demo.output
    if moment == "evaluation return":
        assert "and saved" in demo.output


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_second_interruption_during_the_end_of_training_still_lets_it_save(demo: Demo) -> None:
    demo.read_until("evaluation return")
    demo.process.send_signal(signal.SIGINT)
    demo.process.send_signal(signal.SIGTERM)
    assert demo.finish() in (130, 143), demo.output
    assert "and saved" in demo.output
    assert processes_of_session(demo.process.pid) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_without_a_terminal_runs_to_the_end(demo: Demo) -> None:
    assert demo.finish() == 0, demo.output
    for row in ("return before training", "return after training", "control round trip", "missed ticks"):
        assert row in demo.output
    before, after = (
        float(re.search(rf"return {when} training\D*?(-?\d+)", demo.output)[1]) for when in ("before", "after")
    )
    assert after > before
    assert processes_of_session(demo.process.pid) == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_policy_of_the_demo_is_clearly_better_than_the_untrained_one(seed: int, tmp_path: Path) -> None:
    specification = importlib.util.spec_from_file_location("demo", ROOT / "deploy" / "demo.py")
    assert specification is not None
    assert specification.loader is not None
    demo = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(demo)
    task = ["--env", demo.ENVIRONMENT, *demo.NOISE]
    out = tmp_path / "run"
    subprocess.run([sys.executable, "-m", "dst_core.train", *task, "--seed", str(seed), "--out", str(out)], check=True)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    untrained, trained = evaluations[0], evaluations[-1]
    assert trained["return_mean"] > untrained["return_mean"] / 4
    assert trained["return_min"] > untrained["return_mean"] + 2 * untrained["return_std"]
