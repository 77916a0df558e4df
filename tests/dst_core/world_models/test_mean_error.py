"""What a likelihood with a learned scale would explain as noise is learned all the same."""

import gymnasium
import numpy as np
import pytest
import torch

from dst_core import world_model
from dst_core.world_model import Transition
from dst_core.world_models.conditional_vae import ConditionalVae
from dst_core.world_models.gaussian_ensemble import GaussianEnsemble
from tests.dst_core.world_models.fitting import MODELS, bimodal, build, fit

BALANCE = np.array([0.0, 25.0, 1.5, 4.0])  # volts per m, rad, m/s and rad/s; keeps the pole up while the cart drifts
DRIFT = 0.5  # m/s


def drifts_to_the_rail(steps: int, seed: int) -> Transition:
    """InvertedPendulum-v5 with its pole balanced while the cart drifts to the end of its rail, where it stops dead and the pole falls."""
    rng = np.random.default_rng(seed)
    rows: list[tuple[np.ndarray, np.ndarray, float, np.ndarray, float]] = []
    env = gymnasium.make("InvertedPendulum-v5")
    observation, _ = env.reset(seed=seed)
    while len(rows) < steps:
        side = 1.0 if len(rows) % 2 else -1.0
        over = False
        while not over:
            volts = BALANCE @ (observation - [0, 0, side * DRIFT, 0]) + 0.3 * rng.standard_normal()
            action = np.clip([volts], -3, 3).astype(np.float32)
            following, reward, terminated, truncated, _ = env.step(action)
            rows.append((observation, action, float(reward), following, float(terminated)))
            observation, over = following, terminated or truncated
        observation, _ = env.reset()
    env.close()
    return Transition(
        *(torch.as_tensor(np.array(column), dtype=torch.float32) for column in zip(*rows[:steps], strict=True))
    )


def at_the_rail(data: Transition) -> Transition:
    return Transition(*(rows[data.observation[:, 0].abs() > 0.99] for rows in data))


def error_at_the_rail(data: Transition, unseen: Transition) -> float:
    """Root mean square of the imagined mean speed's error, in m/s."""
    model = build("cvae", data)
    fit(model, data, updates=4000, learning_rate=1e-3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        draws = [model.sample(unseen.observation, unseen.action, generator).next_observation for _ in range(20)]
    return float((torch.stack(draws).mean(0) - unseen.next_observation)[:, 2].square().mean().sqrt())


@pytest.mark.slow
def test_rare_impacts_are_not_explained_as_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    data, unseen = drifts_to_the_rail(8000, 0), at_the_rail(drifts_to_the_rail(4000, 1))
    assert len(at_the_rail(data).reward) < 0.1 * len(data.reward)
    error = error_at_the_rail(data, unseen)
    monkeypatch.setattr(world_model, "MEAN_WEIGHT", 0.0)
    by_likelihood_alone = error_at_the_rail(data, unseen)
    assert error < 0.7 * by_likelihood_alone, (error, by_likelihood_alone)


def test_mean_error_is_that_of_the_mean_whatever_the_scale() -> None:
    data = bimodal(200, 0)
    for name in ("cvae", "ensemble"):
        model = build(name, data)
        given, outcome = model.standardised(data)
        with torch.no_grad():
            if isinstance(model, ConditionalVae):
                model.decoder.latent_in.weight.zero_()
                means, weights = model.decoder(given, torch.zeros(200, 2))[None], torch.ones(1, 200)
                model.output_log_std.fill_(1.0)
            else:
                assert isinstance(model, GaussianEnsemble)
                means, weights = model.networks(given).chunk(2, -1)[0], model.bootstrap_weights(data)
        expected = np.mean(
            [
                float(w) * float(((m - y) ** 2).sum())
                for member, rows in zip(means, weights, strict=True)
                for m, w, y in zip(member, rows, outcome, strict=True)
            ]
        )
        losses = model.losses(data, torch.Generator().manual_seed(0))
        assert float(losses["mean_loss"].detach()) == pytest.approx(world_model.MEAN_WEIGHT * expected, rel=1e-4)


def test_model_without_a_mean_at_hand_has_no_such_loss() -> None:
    data = bimodal(200, 0)
    assert {name: "mean_loss" in build(name, data).losses(data, torch.Generator()) for name in MODELS} == {
        "cvae": True,
        "ensemble": True,
        "flow": False,
    }
