"""The task's contract as plain values, and whether a task is still the one that a run was trained on."""

import math
from dataclasses import asdict
from typing import Any

from dst_core.errors import TrainingError
from sim_bridge.tasks import Channel, TaskContract


def plain_contract(contract: TaskContract) -> dict[str, Any]:
    """`observation`, `action` (channels as they stand in a bundle's manifest) and `control_period_s`."""
    return {
        "observation": [_plain_channel(channel) for channel in contract.observation],
        "action": [_plain_channel(channel) for channel in contract.action],
        "control_period_s": contract.control_period_s,
    }


def require_same_contract(trained: dict[str, Any], found: dict[str, Any], *, environment: str) -> None:
    """Refuse a task that changed since training: its policy would be steered by, and steer, other quantities than it learned.

    Args:
        trained: `plain_contract` at training time.
        found: of the task as it is made here and now.
        environment: Gymnasium id, for the message.

    Raises:
        TrainingError: naming the first difference.
    """
    if trained == found:
        return
    raise TrainingError(
        f"{environment} is not the task of the training any more: {_difference(trained, found)}; "
        "use the version of the task that the run was trained with, or train again"
    )


def _plain_channel(channel: Channel) -> dict[str, Any]:
    plain = asdict(channel)
    return {**plain, **{limit: plain[limit] if math.isfinite(plain[limit]) else None for limit in ("low", "high")}}


def _difference(trained: dict[str, Any], found: dict[str, Any]) -> str:
    for vector in ("observation", "action"):
        before, now = trained.get(vector, []), found[vector]
        if len(before) != len(now):
            return f"{vector} had {len(before)} channels, now {len(now)}"
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            if old != new:
                return f"{vector} channel {index} was {_words(old)}, now {_words(new)}"
    return f"the control period was {trained.get('control_period_s')} s, now {found['control_period_s']} s"


def _words(channel: dict[str, Any]) -> str:
    return f"{channel['name']} in {channel['unit']} within [{channel['low']}, {channel['high']}]"
