"""Between the messages of policy.proto and numpy: contracts, checked vectors, decisions."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from protos import policy_pb2 as pb

FloatArray = NDArray[np.float32]


class VectorError(ValueError):
    """A vector does not fit its contract; the message names the channel and its index."""


class ChannelLike(Protocol):
    """What a contract says of one number of a vector; `pb.Channel` and `Channel` both fit."""

    @property
    def name(self) -> str:
        """Name, unique within its vector."""

    @property
    def unit(self) -> str:
        """Unit, for instance `rad/s`."""

    @property
    def low(self) -> float:
        """Lower limit in that unit, -infinity where unbounded."""

    @property
    def high(self) -> float:
        """Upper limit in that unit, +infinity where unbounded."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One number of an observation or action vector."""

    name: str
    """Unique within its vector."""
    unit: str
    """Unit of the number and of its limits."""
    low: float = -math.inf
    """Lower limit, -infinity where unbounded."""
    high: float = math.inf
    """Upper limit, +infinity where unbounded."""


def contract_fingerprint(
    observation: Sequence[ChannelLike], action: Sequence[ChannelLike], control_period_s: float
) -> str:
    """SHA-256 (hex) over the canonical JSON of names, units and limits in order, and of the control period.

    Two sides with the same fingerprint agree about every number they exchange. Infinite limits count as unbounded.

    Args:
        observation: channels in vector order.
        action: channels in vector order.
        control_period_s: seconds between two decisions.

    Raises:
        ValueError: a limit is NaN, or the period is not finite.
    """
    if not math.isfinite(control_period_s):
        raise ValueError(f"control_period_s must be finite, got {control_period_s}")
    contract = {
        "observation": [_canonical_channel(channel) for channel in observation],
        "action": [_canonical_channel(channel) for channel in action],
        "control_period_s": float(control_period_s),
    }
    text = json.dumps(contract, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical_channel(channel: ChannelLike) -> dict[str, str | float | None]:
    limits = {"low": channel.low, "high": channel.high}
    for side, limit in limits.items():
        if math.isnan(limit):
            raise ValueError(f"{side} limit of channel {channel.name!r} must be a number or infinite, got NaN")
    # Adding zero makes one of the two zeros, -0.0 and 0.0, of which sides could otherwise disagree.
    finite = {side: None if math.isinf(limit) else float(limit) + 0.0 for side, limit in limits.items()}
    return {"name": channel.name, "unit": channel.unit, **finite}


def channels_to_proto(channels: Sequence[ChannelLike]) -> list[pb.Channel]:
    """The channels as messages, in the same order."""
    return [pb.Channel(name=c.name, unit=c.unit, low=c.low, high=c.high) for c in channels]


def channels_from_proto(messages: Sequence[pb.Channel]) -> tuple[Channel, ...]:
    """The channels of a description, in the same order."""
    return tuple(Channel(name=m.name, unit=m.unit, low=m.low, high=m.high) for m in messages)


def checked_vector(values: ArrayLike, names: Sequence[str], quantity: str = "observation") -> FloatArray:
    """One vector in the order of its contract, as float32.

    Args:
        values: the numbers, shape (len(names),).
        names: channel names in vector order.
        quantity: what the vector is, for error messages.

    Returns:
        A new array or a view, shape (len(names),), finite.

    Raises:
        VectorError: wrong shape, or NaN, infinity or a number beyond float32; names the first such channel.
    """
    # Overflow to infinity is not worth a warning here: the check below names the channel.
    with np.errstate(over="ignore"):
        vector = np.asarray(values, dtype=np.float32)
    if vector.shape != (len(names),):
        raise VectorError(_wrong_shape(vector.shape, names, quantity))
    if not np.isfinite(vector).all():
        index = int(np.argmin(np.isfinite(vector)))
        raise VectorError(
            f"{quantity} must be finite, got {vector[index]} for {names[index]!r} at index {index}; "
            "send a finite float32 number"
        )
    return vector


def message_vector(values: Sequence[float], names: Sequence[str], quantity: str = "observation") -> FloatArray:
    """The same of a message's float32 numbers, by a shorter way: it is on the path of every decision.

    Raises:
        VectorError: as `checked_vector`.
    """
    # The sum of float32 numbers in float64 is finite exactly where all of them are.
    if len(values) == len(names) and math.isfinite(sum(values)):
        return np.fromiter(values, np.float32, len(names))
    return checked_vector(values, names, quantity)


def _wrong_shape(shape: tuple[int, ...], names: Sequence[str], quantity: str) -> str:
    text = f"{quantity} must have shape ({len(names)},), got {shape}"
    if len(shape) == 1 and shape[0] < len(names):
        return f"{text}; the policy expects {names[shape[0]]!r} at index {shape[0]}"
    return f"{text}; the policy expects {', '.join(map(repr, names)) or 'nothing'}"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Summary of the joint law of the return and its gradients at one observation and action.

    S observation channels, A actions, Q return quantile levels, K gradient norm levels of the policy's description.
    """

    return_mean: float
    """Mean of the discounted return, reward units."""
    return_std: float
    """Standard deviation of the discounted return, reward units."""
    return_quantiles_raw: FloatArray
    """(Q,), the critics' own, reward units, never crossing."""
    return_quantiles_corrected: FloatArray | None
    """(Q,), the same corrected by held-out returns; None where the policy is not calibrated."""
    return_cvar: float
    """Mean of the worst `cvar_level` share of returns, reward units, raw."""
    return_below_threshold: float
    """Share of return samples under `return_threshold`, raw."""
    gradient_mean: FloatArray
    """(A,), reward per action unit."""
    gradient_std: FloatArray
    """(A,), reward per action unit."""
    gradient_norm_quantiles: FloatArray
    """(K,), quantiles of the gradient's Euclidean norm."""
    gradient_sign_agreement: FloatArray
    """(A,), share of gradient samples with the majority sign, 0.5 to 1."""
    gradient_resultant_length: float
    """0: gradient samples point everywhere; 1: all in one direction."""
    critic_disagreement: float
    """Standard deviation between the critics' mean returns, reward units."""
    data_distance: float
    """Of the observation to the nearest of the training data, in standard deviations of its channels."""
    observation_gradient_mean: FloatArray | None
    """(S,), reward per observation unit; None where the policy does not serve it."""


def summary_to_proto(summary: Summary) -> pb.Summary:
    """The summary as a message."""
    return pb.Summary(
        return_mean=summary.return_mean,
        return_std=summary.return_std,
        return_quantiles_raw=summary.return_quantiles_raw.tolist(),
        return_quantiles_corrected=_listed(summary.return_quantiles_corrected),
        return_cvar=summary.return_cvar,
        return_below_threshold=summary.return_below_threshold,
        gradient_mean=summary.gradient_mean.tolist(),
        gradient_std=summary.gradient_std.tolist(),
        gradient_norm_quantiles=summary.gradient_norm_quantiles.tolist(),
        gradient_sign_agreement=summary.gradient_sign_agreement.tolist(),
        gradient_resultant_length=summary.gradient_resultant_length,
        critic_disagreement=summary.critic_disagreement,
        data_distance=summary.data_distance,
        observation_gradient_mean=_listed(summary.observation_gradient_mean),
    )


def _listed(vector: FloatArray | None) -> list[float]:
    return [] if vector is None else vector.tolist()


def summary_from_proto(message: pb.Summary, description: pb.DescribeResponse) -> Summary:
    """The summary of a decision, its sizes and finiteness checked against the policy's description.

    Raises:
        VectorError: a field has the wrong size or is not finite; names the field.
    """
    observations = [channel.name for channel in description.observation]
    actions = [channel.name for channel in description.action]
    levels = [f"level {level}" for level in description.return_quantile_levels]
    norm_levels = [f"level {level}" for level in description.gradient_norm_levels]
    scalars = (
        "return_mean",
        "return_std",
        "return_cvar",
        "return_below_threshold",
        "gradient_resultant_length",
        "critic_disagreement",
        "data_distance",
    )
    checked_vector([getattr(message, name) for name in scalars], scalars, "summary")
    return Summary(
        return_mean=message.return_mean,
        return_std=message.return_std,
        return_quantiles_raw=checked_vector(message.return_quantiles_raw, levels, "return_quantiles_raw"),
        return_quantiles_corrected=_optional(
            message.return_quantiles_corrected, levels, "return_quantiles_corrected", served=description.calibrated
        ),
        return_cvar=message.return_cvar,
        return_below_threshold=message.return_below_threshold,
        gradient_mean=checked_vector(message.gradient_mean, actions, "gradient_mean"),
        gradient_std=checked_vector(message.gradient_std, actions, "gradient_std"),
        gradient_norm_quantiles=checked_vector(message.gradient_norm_quantiles, norm_levels, "gradient_norm_quantiles"),
        gradient_sign_agreement=checked_vector(message.gradient_sign_agreement, actions, "gradient_sign_agreement"),
        gradient_resultant_length=message.gradient_resultant_length,
        critic_disagreement=message.critic_disagreement,
        data_distance=message.data_distance,
        observation_gradient_mean=_optional(
            message.observation_gradient_mean,
            observations,
            "observation_gradient_mean",
            served=description.observation_gradient,
        ),
    )


def _optional(values: Sequence[float], names: Sequence[str], quantity: str, *, served: bool) -> FloatArray | None:
    vector = checked_vector(values, names if served else (), quantity)
    return vector if served else None


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Raw joint samples: gradient sample i belongs to return sample i."""

    returns: FloatArray
    """(N,), reward units."""
    action_gradients: FloatArray
    """(N, A), reward per action unit."""


def samples_to_proto(samples: Samples) -> pb.Samples:
    """The samples as a message, gradients row-major."""
    return pb.Samples(
        count=len(samples.returns),
        returns=samples.returns.tolist(),
        action_gradients=samples.action_gradients.ravel().tolist(),
    )


def samples_from_proto(message: pb.Samples, description: pb.DescribeResponse) -> Samples:
    """The samples of a decision, checked against the policy's description.

    Raises:
        VectorError: count, sizes and description disagree, or a number is not finite.
    """
    count, actions = message.count, len(description.action)
    if count != description.sample_count:
        raise VectorError(f"samples must number {description.sample_count}, got {count}; describe the policy again")
    returns = checked_vector(message.returns, [f"sample {i}" for i in range(count)], "returns")
    names = [f"sample {i} of {channel.name}" for i in range(count) for channel in description.action]
    gradients = checked_vector(message.action_gradients, names, "action_gradients")
    return Samples(returns=returns, action_gradients=gradients.reshape(count, actions))
