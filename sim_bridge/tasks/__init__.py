"""Control tasks and their perturbations, the same for training and for driving."""

import gymnasium

from sim_bridge.errors import TaskError
from sim_bridge.tasks.contract import Channel, TaskContract, describe_task
from sim_bridge.tasks.registry import make_task

__all__ = ["Channel", "TaskContract", "TaskError", "describe_task", "make_task"]

gymnasium.register("PendulumSwingUp-v0", "sim_bridge.tasks.pendulum_swing_up:PendulumSwingUp", max_episode_steps=200)
