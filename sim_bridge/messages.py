"""What a client sends, as messages of policy.proto."""

import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb


def act_request(
    observation: NDArray[np.floating],
    *,
    policy: str,
    contract: str,
    detail: pb.Detail.ValueType,
    selection: pb.Selection | None,
) -> pb.ActRequest:
    """One observation, (S,), for one decision.

    Raises:
        ValueError: if the observation is not one vector.
    """
    return pb.ActRequest(
        policy=policy, contract=contract, observation=listed(observation), detail=detail, selection=selection
    )


def assess_request(
    observation: NDArray[np.floating],
    candidates: NDArray[np.floating],
    *,
    policy: str,
    contract: str,
    detail: pb.Detail.ValueType,
) -> pb.AssessRequest:
    """One observation, (S,), and the actions to assess there, (C, A).

    Raises:
        ValueError: if the observation is not one vector or the candidates are not rows of a matrix.
    """
    if candidates.ndim != 2:
        raise ValueError(
            f"candidates must have shape (count, action channels), got {candidates.shape}; "
            "send one action as candidates[None]"
        )
    return pb.AssessRequest(
        policy=policy,
        contract=contract,
        observation=listed(observation),
        candidates=candidates.ravel().tolist(),
        detail=detail,
    )


def listed(observation: NDArray[np.floating]) -> list[float]:
    """The numbers of one observation, (S,).

    Raises:
        ValueError: if it is not one vector.
    """
    if observation.ndim != 1:
        raise ValueError(f"observation must have shape (observation channels,), got {observation.shape}")
    numbers: list[float] = observation.tolist()
    return numbers
