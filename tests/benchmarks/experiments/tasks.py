"""Tasks that misbehave, and one that waits, for the processes of the tests."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

RELEASE = "TEST_RELEASE_FILE"
"""Environment variable that names a file; as long as that is absent, steps of `Waiting` take long."""
HELPER = "TEST_HELPER_FILE"
"""Environment variable that names a file, in which `Stuck` leaves the process it has started."""


class Drift(gymnasium.Env[Any, Any]):
    """Adds the action up; ten steps an episode."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = self.np_random.uniform(-1, 1, 1).astype(np.float32), 0
        return self.place.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = np.clip(self.place + action, -10, 10).astype(np.float32)
        self.steps += 1
        return self.place.copy(), self.reward(), False, self.steps == 10, {}

    def reward(self) -> float:
        return -float(abs(self.place[0]))


class NotANumber(Drift):
    """Its reward is no number from its third step on, in training; evaluations are before that."""

    taken = 0

    def reward(self) -> float:
        NotANumber.taken += 1
        return float("nan") if NotANumber.taken > 22 else super().reward()


class Crash(Drift):
    """Fails in its third step of training."""

    taken = 0

    def reward(self) -> float:
        Crash.taken += 1
        if Crash.taken > 22:
            raise RuntimeError("the simulator gave up")
        return super().reward()


class Waiting(Drift):
    """A step takes 20 ms until it is released."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not Path(os.environ[RELEASE]).exists():
            time.sleep(0.02)
        return super().step(action)


class Killer(Drift):
    """Ends the process that watches its own in its third step of training."""

    taken = 0

    def reward(self) -> float:
        Killer.taken += 1
        if Killer.taken > 22:
            os.kill(os.getppid(), signal.SIGKILL)
        return super().reward()


class Stuck(Drift):
    """Its first step of training never ends; it has a process of its own by then, as a compiler is."""

    taken = 0

    def reward(self) -> float:
        Stuck.taken += 1
        if Stuck.taken > 20:
            helper = subprocess.Popen(["sleep", "600"])
            Path(os.environ[HELPER]).write_text(str(helper.pid))
            helper.wait()
        return super().reward()


for _kind in (Drift, NotANumber, Crash, Waiting, Killer, Stuck):
    gymnasium.register(f"{_kind.__name__}-v0", _kind)
