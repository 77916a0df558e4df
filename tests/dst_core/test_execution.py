"""How updates are computed is chosen once per run, said, kept for resume, and falls back where it cannot be had."""

import json
import logging
import os
from pathlib import Path

import pytest
import torch

from dst_core import execution
from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig
from dst_core.execution import Execution, can_compile, choose_execution, faster_precision, using_threads
from dst_core.train import train
from dst_core.trainer import Trainer

CPU = torch.device("cpu")


def chosen(**choices) -> Execution:
    defaults = {"compile_updates": "auto", "precision": "auto", "threads": 0, "updates": 10**6, "rows": 64, "width": 32}
    return choose_execution(**{**defaults, "device": CPU, **choices})


def test_short_runs_are_plain_and_the_same_on_every_machine() -> None:
    assert chosen(updates=execution.WORTH_COMPILING_UPDATES - 1) == Execution()


def test_long_runs_compile_where_there_is_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "can_compile", lambda device: True)
    assert chosen().compiled
    assert not chosen(compile_updates="off").compiled
    monkeypatch.setattr(execution, "can_compile", lambda device: False)
    assert not chosen().compiled


def test_compiler_is_looked_for_where_torch_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert not can_compile(CPU)
    compiler = tmp_path / "my-compiler"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    assert can_compile(CPU)


@pytest.mark.parametrize(("bfloat16_s", "expected"), [(0.1, "bfloat16"), (0.9, "float32"), (5.0, "float32")])
def test_precision_is_the_one_that_is_clearly_faster(
    bfloat16_s: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1.0, bfloat16_s])
    monkeypatch.setattr(execution, "median_s", lambda call, device: next(times))
    assert faster_precision(rows=4, width=4, device=CPU) == expected


def test_what_the_command_line_asks_for_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(execution, "median_s")
    assert chosen(precision="bfloat16", threads=3, compile_updates="off") == Execution(precision="bfloat16", threads=3)


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with using_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_products_are_done_in_the_precision_asked_for(precision: str) -> None:
    product = Execution(precision=precision).prepare(lambda x: x @ x)(torch.ones(2, 2))
    assert product.dtype == execution.PRECISIONS[precision]


@pytest.mark.skipif(not can_compile(torch.device("cpu")), reason="no C++ compiler: torch.compile has nothing to call")
def test_many_agents_are_compiled_in_one_process() -> None:
    class Part:
        def __init__(self, factor: int) -> None:
            self.factor = factor

        def scaled(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x

    for factor in range(12):  # torch gives up on code that it has compiled eight times
        scaled = Execution(compiled=True).prepare(Part(factor).scaled)
        assert torch.equal(scaled(torch.ones(2)), torch.full((2,), float(factor)))


def config(out: Path, **choices) -> TrainConfig:
    agent = AgentConfig(hidden=8, samples=4, noise_size=2, latent=2)
    small = {"warmup_steps": 20, "batch": 8, "evaluate_every": 40, "evaluation_episodes": 1, "forecast_updates": 5}
    return TrainConfig(env="InvertedPendulum-v5", out=out, agent=agent, **{"steps": 60, **small, **choices})


def lines_of(kind: str, out: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_choice_is_kept_with_the_run_and_used_on_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(config(tmp_path, precision="bfloat16"))
    assert "matrix products in bfloat16" in capsys.readouterr().out
    monkeypatch.delattr("dst_core.trainer.choose_execution")
    train(config(tmp_path, precision="bfloat16", steps=70, resume=True))
    assert "matrix products in bfloat16" in capsys.readouterr().out
    (line,) = lines_of("execution", tmp_path)
    assert (line["precision"], line["compiled"], line["threads"]) == ("bfloat16", False, 1)


def test_compiled_run_goes_on_eager_where_there_is_no_compiler_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dst_core.trainer.choose_execution", lambda **_: Execution(compiled=True))
    monkeypatch.setattr("dst_core.execution.can_compile", lambda device: False)
    monkeypatch.delattr(torch, "compile")
    train(config(tmp_path))
    assert "no C++ compiler" in capsys.readouterr().out
    assert lines_of("evaluation", tmp_path)[-1]["step"] == 60


def test_reports_read_many_at_a_time_are_those_read_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, which would have to be waited for."""
    monkeypatch.setattr("dst_core.trainer.LOG_EVERY_UPDATES", 10)
    train(config(tmp_path / "one"))
    start = Trainer.__init__

    def reading_seldom(self: Trainer, *arguments, **named) -> None:
        start(self, *arguments, **named)
        self.read_every = 7

    monkeypatch.setattr(Trainer, "__init__", reading_seldom)
    train(config(tmp_path / "many"))
    apart = ("step", "time", "updates_per_s")
    one, many = (
        [{name: value for name, value in line.items() if name not in apart} for line in lines_of("update", out)]
        for out in (tmp_path / "one", tmp_path / "many")
    )
    assert one == many
    assert [line["updates"] for line in one] == [10, 20, 30, 40]


def test_compiled_code_is_kept_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(execution.CACHE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    (tmp_path / "file").touch()
    execution.keep_compiled_code()
    assert execution.CACHE not in os.environ
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    execution.keep_compiled_code()
    assert Path(os.environ[execution.CACHE]) == tmp_path / "dst" / "compiled"
    monkeypatch.setenv(execution.CACHE, "elsewhere")
    execution.keep_compiled_code()
    assert os.environ[execution.CACHE] == "elsewhere"


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(CPU), reason="no C++ compiler: torch.compile has nothing to call")
def test_compiled_run_trains_and_keeps_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger("torch").setLevel(logging.WARNING)
    monkeypatch.setattr(execution, "WORTH_COMPILING_UPDATES", 1)
    monkeypatch.setenv(execution.CACHE, str(tmp_path / "cache"))
    train(config(tmp_path / "run", precision="float32"))
    shown = capsys.readouterr().out
    assert "updates are compiled" in shown
    assert "with compiling them or loading them from the cache, took" in shown
    assert any((tmp_path / "cache").rglob("*.so"))
