"""Control tasks and their perturbations, the same for training and for driving.

`PendulumSwingUp-v0`; `PointMass1-v0`, `PointMass2-v0`, `PointMass4-v0` and `PointMass8-v0` with that many reward
locations, where `PointMass-v0` is short for the second.
"""

import gymnasium

from sim_bridge.errors import TaskError
from sim_bridge.tasks.contract import Channel, TaskContract, describe_task
from sim_bridge.tasks.registry import make_task

__all__ = ["Channel", "TaskContract", "TaskError", "describe_task", "make_task"]

gymnasium.register("PendulumSwingUp-v0", "sim_bridge.tasks.pendulum_swing_up:PendulumSwingUp", max_episode_steps=200)
for _id, _locations in {"": 2, "1": 1, "2": 2, "4": 4, "8": 8}.items():
    gymnasium.register(
        f"PointMass{_id}-v0",
        "sim_bridge.tasks.point_mass:PointMass",
        max_episode_steps=50,
        kwargs={"locations": _locations},
    )
