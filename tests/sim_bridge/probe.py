"""A task that shows what a perturbation does to it."""

import gymnasium
import numpy as np


class Probe(gymnasium.Env):
    """Observes the action it was given, and ones at first."""

    action_space = gymnasium.spaces.Box(np.float32([-3.0, 0.0]), np.float32([3.0, 1.0]))
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(2, np.float32), {}

    def step(self, action):
        return np.asarray(action, np.float32), 0.0, False, False, {}
