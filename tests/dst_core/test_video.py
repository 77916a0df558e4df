"""Videos of evaluation episodes: whole, readable, and without effect on the numbers."""

import json
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig
from dst_core.errors import TrainingError
from dst_core.evaluate import evaluate
from dst_core.train import train
from dst_core.video import Video, require_rendering

TASK = "InvertedPendulum-v5"


def fall(observation: np.ndarray) -> np.ndarray:
    return np.array([3.0], np.float32)


@pytest.fixture
def rendering() -> None:
    try:
        require_rendering(TASK, ())
    except TrainingError as error:
        pytest.skip(str(error))


def test_frames_come_back_in_order_with_odd_sizes_cut(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.mp4"
    with Video(path, period_s=0.05) as video:
        for brightness in (0, 60, 120, 180, 240):
            video.write(np.full((65, 47, 3), brightness, np.uint8))
    frames = imageio.imread(path, plugin="pyav")
    assert frames.shape == (5, 64, 46, 3)
    assert frames.mean((1, 2, 3)) == pytest.approx([0, 60, 120, 180, 240], abs=4)
    assert imageio.immeta(path, plugin="pyav")["fps"] == pytest.approx(20)


@pytest.mark.usefixtures("rendering")
def test_video_shows_the_first_episode_from_reset_to_end_and_leaves_the_numbers_alone(tmp_path: Path) -> None:
    task = {"environment": TASK, "perturbations": ("actuation=0.1",), "seeds": (3, 4)}
    plain = evaluate(fall, **task)
    filmed = evaluate(fall, **task, video=tmp_path / "x.mp4")
    assert filmed.returns == plain.returns
    for one, other in zip(filmed.trajectories, plain.trajectories, strict=True):
        assert np.array_equal(one.observations, other.observations)
    frames = imageio.imread(tmp_path / "x.mp4", plugin="pyav")
    assert len(frames) == len(plain.trajectories[0].rewards) + 1
    assert np.abs(frames[0].astype(float) - frames[-1]).max() > 50  # the pole has fallen


def config(out: Path) -> TrainConfig:
    small = {"steps": 20, "warmup_steps": 15, "batch": 8, "forecast_updates": 2, "agent": AgentConfig(hidden=8)}
    often = {"evaluate_every": 10, "evaluation_episodes": 1, "device": "cpu"}
    return TrainConfig(env=TASK, out=out, video=True, **small, **often)


@pytest.mark.usefixtures("rendering")
def test_training_films_every_evaluation(tmp_path: Path) -> None:
    assert train(config(tmp_path)) == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    lengths = {line["step"]: line["length_mean"] for line in lines if line["kind"] == "evaluation"}
    assert list(lengths) == [0, 10, 20]
    assert len(list((tmp_path / "videos").iterdir())) == 3
    for step, length in lengths.items():
        assert len(imageio.imread(tmp_path / "videos" / f"step-{step}.mp4", plugin="pyav")) == length + 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Gymnasium's half-made viewer
def test_task_that_cannot_be_rendered_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "none")
    with pytest.raises(TrainingError, match=r"cannot be rendered here: .*MUJOCO_GL=none.* or leave --video out"):
        train(config(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
