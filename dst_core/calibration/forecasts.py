"""What a law said at the ticks of held-out episodes."""

from typing import NamedTuple

import numpy as np
import torch

from dst_core.calibration.by_episode import Array
from dst_core.calibration.rollouts import Ticks
from dst_core.graphs import UncertaintyGraph

SAMPLES_AT_ONCE = 32_000


class Forecasts(NamedTuple):
    """Fields of `dst_core.summary.Summary` under their names, at R ticks."""

    return_mean: Array
    """(R,)"""
    return_std: Array
    """(R,)"""
    return_quantiles_raw: Array
    """(R, Q)"""
    return_cvar: Array
    """(R,)"""
    gradient_resultant_length: Array
    """(R,)"""
    critic_disagreement: Array
    """(R,)"""
    data_distance: Array
    """(R,)"""
    return_samples: Array
    """(R, N)"""


@torch.no_grad()
def forecasts(law: UncertaintyGraph, ticks: Ticks) -> Forecasts:
    """The law of the return at every tick, for the action taken there.

    Args:
        law: on the CPU, in evaluation mode.
        ticks: R of them.
    """
    observation, action = torch.from_numpy(ticks.observation), torch.from_numpy(ticks.action)
    samples = law(observation[:1], action[:1]).return_samples.shape[1]
    rows = max(SAMPLES_AT_ONCE // samples, 1)
    pairs = zip(torch.split(observation, rows), torch.split(action, rows), strict=True)
    parts = [law(*pair) for pair in pairs]
    return Forecasts(
        *(
            np.concatenate([getattr(part, name).numpy() for part in parts]).astype(np.float64)
            for name in Forecasts._fields
        )
    )
