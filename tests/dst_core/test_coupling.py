"""Critics share their noise with their target where that leaves the comparison unbiased, and nowhere else."""

import pytest
import torch

from dst_core.critic_learner import CriticLearner
from dst_core.targets import TargetSamples
from dst_core.world_model import Transition
from tests.dst_core.test_reference import agent_and_transition


@pytest.mark.parametrize(
    ("choices", "coupled"),
    [
        ({"target_law": "lesser"}, True),
        ({"truncate": 0.0}, True),
        ({"truncate": 0.1}, False),
    ],
    ids=str,
)
def test_noise_is_shared_unless_samples_are_dropped_by_it(
    choices: dict[str, object], coupled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {}
    target, loss = CriticLearner.target, CriticLearner.loss

    def of_target(learner: CriticLearner, transition: Transition, noise: torch.Tensor, **rest: object) -> TargetSamples:
        seen["target"] = noise
        return target(learner, transition, noise, **rest)

    def of_critics(
        learner: CriticLearner, transition: Transition, aim: TargetSamples, noise: torch.Tensor
    ) -> torch.Tensor:
        seen["critics"] = noise
        return loss(learner, transition, aim, noise)

    monkeypatch.setattr(CriticLearner, "target", of_target)
    monkeypatch.setattr(CriticLearner, "loss", of_critics)
    agent, transition = agent_and_transition(**choices)
    agent.update(transition, torch.Generator().manual_seed(0))
    assert torch.equal(seen["target"], seen["critics"]) is coupled
    assert not bool((seen["target"] == seen["critics"]).any()) or coupled
