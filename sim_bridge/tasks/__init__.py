"""Control tasks and their perturbations, the same for training and for driving."""

from sim_bridge.errors import TaskError
from sim_bridge.tasks.contract import Channel, TaskContract, describe_task
from sim_bridge.tasks.registry import make_task

__all__ = ["Channel", "TaskContract", "TaskError", "describe_task", "make_task"]
