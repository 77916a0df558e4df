"""Updates of Stable-Baselines3's TD3 and TQC at the same sizes: what people train with."""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from sb3_contrib import TQC
from stable_baselines3 import TD3
from stable_baselines3.common.logger import configure


class _Still(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task of the sizes asked for, in which nothing happens: the peers take their sizes from it."""

    def __init__(self, observation: int, action: int) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (observation,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (action,), np.float32)


def peer_updates(
    *, observation: int, action: int, hidden: int, batch: int, device: str
) -> dict[str, Callable[[], object]]:
    """One gradient step, averaged over TD3's delay of the actor, by the peers' own `train`: keys of the benchmark to calls of two steps."""
    calls: dict[str, Callable[[], object]] = {}
    for key, kind in (("sb3_td3", TD3), ("sb3_tqc", TQC)):
        peer: Any = kind(
            "MlpPolicy",
            _Still(observation, action),
            batch_size=batch,
            buffer_size=4 * batch,
            policy_kwargs={"net_arch": [hidden, hidden]},
            device=device,
            seed=0,
        )
        peer.set_logger(configure(None, []))
        rng = np.random.default_rng(0)
        for _ in range(4 * batch):
            rows = (
                rng.normal(size=(1, observation)),
                rng.normal(size=(1, observation)),
                rng.uniform(-1, 1, (1, action)),
            )
            peer.replay_buffer.add(*(row.astype(np.float32) for row in rows), rng.normal(size=1), np.zeros(1), [{}])
        calls[key] = functools.partial(peer.train, gradient_steps=2, batch_size=batch)
    return calls
