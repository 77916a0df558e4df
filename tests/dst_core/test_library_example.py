"""docs/library.md: the example runs, is short, and moves its critic as the project's own learner would."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from dst_core.critic_learner import CriticLearner
from dst_core.world_model import Transition

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
CODE = re.search(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
DROP_IN, LOOP = CODE.split("actor = torch.nn.Sequential", 1)


def executed(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_drop_in_is_under_forty_lines() -> None:
    lines = [line for line in DROP_IN.splitlines() if line.strip()]
    assert len(lines) < 40


def test_example_runs_in_its_loop_and_moves_critic_and_actor() -> None:
    torch.manual_seed(0)
    names = executed(CODE.replace("STEPS, S, A = 5000", "STEPS, S, A = 510"))
    assert names["step"] == 509
    assert len(names["critic_adam"].state) == len(list(names["critic"].parameters()))
    assert all(bool(parameter.isfinite().all()) for parameter in names["critic"].parameters())


def test_example_moves_its_critic_as_the_projects_own_learner_does() -> None:
    torch.manual_seed(0)
    names = executed(DROP_IN)
    batch = Transition(torch.randn(32, 3), torch.randn(32, 1), torch.randn(32), torch.randn(32, 3), torch.zeros(32))
    names["observation"].update(batch.observation)
    names["model"].observe(batch)
    learner = CriticLearner(
        deepcopy(names["critic"]),
        discount=0.98,
        samples=6,
        target_steps="replayed",
        target_law="pooled",
        truncate=0.1,
        blocks=("action",),
        distance="mmd",
        kernel="multiquadric",
        bandwidth=100.0,
        estimator="unbiased",
        gradient_weight=0.1,
        polyak=0.01,
        learning_rate=1e-3,
        max_gradient_norm=10.0,
    )

    def actor(observation: torch.Tensor) -> torch.Tensor:
        return observation[..., :1].tanh()

    for seed in range(3):
        torch.manual_seed(seed)
        model = deepcopy(names["model"])
        names["update_critic"](batch, actor)
        generator = torch.Generator().manual_seed(seed)
        model.losses(batch, generator)  # draws what the example's step of the model drew
        learner.step(batch, model=names["model"], actor=actor, generator=generator)
    for mine, theirs in zip(learner.critic.parameters(), names["critic"].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
