"""What disturbs a task, as Gymnasium wrappers written `name=scale` and composed by name.

Each wrapper draws from a stream of its own, spawned from the seed given to `reset`: the same seed gives the same
episode whatever ran before it, and adding one perturbation changes neither the others' noise nor the task's own initial
state. Without a seed the stream goes on where it was, as Gymnasium environments do.
"""

from sim_bridge.tasks.perturbations.composition import PERTURBATIONS, Perturbation, parse_perturbation, perturb
from sim_bridge.tasks.perturbations.wrapper import Environment, PerturbationWrapper, box, task_name

__all__ = [
    "PERTURBATIONS",
    "Environment",
    "Perturbation",
    "PerturbationWrapper",
    "box",
    "parse_perturbation",
    "perturb",
    "task_name",
]
