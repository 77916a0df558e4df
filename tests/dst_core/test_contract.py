"""A run goes on, is calibrated and is exported only in the task that it was trained on."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig
from dst_core.contract import plain_contract, require_same_contract
from dst_core.errors import TrainingError
from dst_core.run import load_run
from dst_core.train import train
from sim_bridge.tasks import Channel, TaskContract
from sim_bridge.tasks.pendulum_swing_up import PendulumSwingUp

CONTRACT = plain_contract(
    TaskContract(
        environment="Task-v0",
        observation=(
            Channel(name="angle", unit="rad", low=-float("inf"), high=float("inf")),
            Channel(name="rate", unit="rad/s", low=-8.0, high=8.0),
        ),
        action=(Channel(name="torque", unit="N m", low=-1.0, high=1.0),),
        control_period_s=0.05,
    )
)


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    contract = deepcopy(CONTRACT)
    place: Any = contract
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return contract


def test_same_contract_is_accepted() -> None:
    require_same_contract(deepcopy(CONTRACT), CONTRACT, environment="Task-v0")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (changed(("observation", 1, "name"), "speed"), "observation channel 1 was rate .* now speed"),
        (changed(("observation", 0, "unit"), "deg"), "observation channel 0 was angle in rad .* now angle in deg"),
        (changed(("action", 0, "high"), 5.0), r"action channel 0 .* within \[-1.0, 1.0\], now .* within \[-1.0, 5.0\]"),
        (changed(("observation",), CONTRACT["observation"][:1]), "observation had 2 channels, now 1"),
        (changed(("control_period_s",), 0.1), "the control period was 0.05 s, now 0.1 s"),
    ],
)
def test_first_difference_is_named_with_the_cure(found: dict[str, Any], words: str) -> None:
    with pytest.raises(TrainingError, match=f"Task-v0 is not the task of the training any more: {words}.*train again"):
        require_same_contract(CONTRACT, found, environment="Task-v0")


def test_run_whose_task_changed_is_neither_loaded_nor_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(
        env="PendulumSwingUp-v0",
        steps=40,
        warmup_steps=30,
        batch=16,
        evaluation_episodes=1,
        forecast_updates=2,
        device="cpu",
        out=tmp_path / "run",
        agent=AgentConfig(hidden=8, noise_size=4, latent=2, samples=3),
    )
    assert train(config) == 0
    assert load_run(config.out).contract.observation[0].name == PendulumSwingUp.observation_channels[0][0]
    swapped = (PendulumSwingUp.observation_channels[1], PendulumSwingUp.observation_channels[0])
    monkeypatch.setattr(PendulumSwingUp, "observation_channels", (*swapped, *PendulumSwingUp.observation_channels[2:]))
    with pytest.raises(TrainingError, match="observation channel 0 was"):
        load_run(config.out)
