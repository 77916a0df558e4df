"""One loaded policy: its contract, and the questions it answers."""

import math
import time
from collections.abc import Mapping, Sequence, Sized
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from protos.codec import (
    Channel,
    FloatArray,
    Samples,
    Summary,
    VectorError,
    checked_vector,
    contract_fingerprint,
    message_vector,
)
from server.batcher import INLINE_BELOW_S, Batcher
from server.decision_template import DecisionTemplate
from server.errors import ContractMismatchError, InvalidInputError
from server.manifest import ChannelLimits, limit
from server.question import Answered, Clock, Question
from server.row_layout import RowLayout
from server.runtime import Detail, Runtime
from server.selection import ACTOR, SCORES, Candidates, Rule, Selected, Selection, pick

Value = TypeVar("Value")
MAX_ROWS = 256
"""Most rows of one question: observations times candidates."""


class Asking(NamedTuple):
    """Who asks, since when and until when."""

    received_ns: int
    """On the core's clock."""
    deadline_ns: int | None = None
    """On the same clock; after it nothing is computed."""
    client: str = ""
    """Any stable name: nobody may hold more than a share of the queue."""
    promised: bool = False
    """Within a rate that was granted."""


class Signals(NamedTuple):
    """What a decision says of its own uncertainty in single numbers, as `Summary` has them."""

    return_cvar: float
    return_below_threshold: float
    critic_disagreement: float
    data_distance: float


class Decision(NamedTuple):
    """The answer to one observation."""

    row: FloatArray
    """(width,): the action, the summary of its law unless `Detail.NONE` was asked, the raw samples where they were."""
    layout: RowLayout
    """Of the row."""
    selected: Selected | None
    """How the action was picked, unless it is the actor's without being asked."""
    queue_ns: int
    """From receipt to the start of inference."""
    inference_ns: int
    """Inference, of all that was joined, and the checks of its outputs."""
    own_ns: int
    """Its part of that."""

    @property
    def action(self) -> FloatArray:
        """(A,), in the units and limits of the contract."""
        return self.row[self.layout.places["action"]]

    @property
    def summary(self) -> Summary | None:
        """Summary of the joint law of return and action gradient, unless `Detail.NONE` was asked."""
        return summary_of(self.layout.split(self.row)) if "return_mean" in self.layout.places else None

    @property
    def signals(self) -> Signals | None:
        """The single numbers of the summary, without the rest of it."""
        places = self.layout.places
        if "return_mean" not in places:
            return None
        return Signals(*(float(self.row[places[name].start]) for name in Signals._fields))

    @property
    def samples(self) -> Samples | None:
        """Raw samples, where `Detail.SAMPLES` was asked."""
        return samples_of(self.layout.split(self.row)) if "return_samples" in self.layout.places else None


class ServedPolicy:
    """One loaded policy. Belongs to one event loop."""

    def __init__(
        self, runtime: Runtime, *, inline_below_s: float = INLINE_BELOW_S, clock: Clock = time.monotonic_ns
    ) -> None:
        manifest = runtime.manifest
        self.manifest = manifest
        self.runtime = runtime
        self.observation = _channels(manifest.observation)
        self.action = _channels(manifest.action)
        self.fingerprint = contract_fingerprint(self.observation, self.action, manifest.control_period_s)
        self.batcher = Batcher(runtime, inline_below_s=inline_below_s, clock=clock)
        self.templates = {detail: DecisionTemplate(layout) for detail, layout in runtime.layouts.items()}
        """Of decisions as messages."""
        self._observation_names = manifest.observation_names
        low, high = (np.array([getattr(c, end) for c in self.action], np.float32) for end in ("low", "high"))
        self._candidates = Candidates(low, high, seed=manifest.uncertainty.noise_seed)

    @property
    def inline(self) -> bool:
        """Whether a single decision is computed on the event loop."""
        return self.batcher.inline

    def cost_s(self, selection: Selection = ACTOR) -> float:
        """About how many seconds of inference one decision takes."""
        if selection.rule is Rule.ACTOR:
            return self.runtime.cost_s(1)
        return self.runtime.cost_s(1) + self.runtime.cost_s(selection.candidates)

    def longest_s(self, selection: Selection = ACTOR) -> float:
        """The longest that a promised decision may have to wait for what is being computed, in seconds."""
        return self.batcher.longest_s(1 if selection.rule is Rule.ACTOR else selection.candidates)

    def check_contract(self, fingerprint: str) -> None:
        """Compares a client's contract fingerprint with the policy's; an empty one is not compared.

        Raises:
            ContractMismatchError: they differ.
        """
        if fingerprint and fingerprint != self.fingerprint:
            raise ContractMismatchError(
                f"contract must be {self.fingerprint} for policy {self.manifest.name!r}, got {fingerprint[:64]!r}; "
                "compare names, units, limits, order and control period with what Describe states"
            )

    def check_selection(self, selection: Selection) -> None:
        """Raises InvalidInputError where the action has no limits to spread candidates over."""
        if selection.rule is not Rule.ACTOR:
            self._candidates.check()

    def checked_observation(self, values: ArrayLike) -> FloatArray:
        """The observation as float32, shape (S,).

        Raises:
            InvalidInputError: wrong size, or a number that is not finite; names the channel and its index.
        """
        if isinstance(values, Sized):
            self.check_not_longer(len(values))
        try:
            return checked_vector(values, self._observation_names)
        except VectorError as error:
            raise InvalidInputError(str(error)) from error

    def message_observation(self, values: Sequence[float]) -> FloatArray:
        """The same of a message's float32 numbers.

        Raises:
            InvalidInputError: as `checked_observation`.
        """
        self.check_not_longer(len(values))
        try:
            return message_vector(values, self._observation_names)
        except VectorError as error:
            raise InvalidInputError(str(error)) from error

    def check_not_longer(self, count: int) -> None:
        """Raises InvalidInputError where an observation has more numbers than channels; before it is converted, for that takes long."""
        size = len(self._observation_names)
        if count > size:
            raise InvalidInputError(
                f"observation must have shape ({size},), got ({count},); the policy expects {listed(self._observation_names)}"
            )

    def ordered_observation(self, values: Mapping[str, Value]) -> list[Value]:
        """The observation in contract order from what is given by channel name, S elements.

        Raises:
            InvalidInputError: a channel is missing or unknown.
        """
        missing = [name for name in self._observation_names if name not in values]
        if missing:
            raise InvalidInputError(f"observation must name every channel, missing {listed(missing)}")
        if len(values) > len(self._observation_names):
            known = set(self._observation_names)
            unknown = [name for name in values if name not in known]
            raise InvalidInputError(
                f"observation names unknown channels {listed(unknown)}; the policy expects "
                f"{listed(self._observation_names)}"
            )
        return [values[name] for name in self._observation_names]

    async def decide(
        self, observation: FloatArray, detail: Detail, asking: Asking, *, selection: Selection = ACTOR
    ) -> Decision:
        """Computes one decision.

        Args:
            observation: from `checked_observation`, shape (S,).
            detail: how much uncertainty to compute.
            asking: who, since when and until when.
            selection: how to pick the action.

        Raises:
            ExpiredError: the deadline passed while it waited.
            OverloadedError: too much is waiting for this policy.
            NotReadyError: the policy was unloaded.
            InferenceError: the policy gave no usable output.
        """
        if selection.rule is not Rule.ACTOR:
            return await self._best(observation, detail, asking, selection)
        return _decision(await self.batcher.ask(_question(observation[np.newaxis], None, detail, asking)))

    def decide_now(
        self, observation: FloatArray, detail: Detail, *, received_ns: int, deadline_ns: int
    ) -> Decision | None:
        """The actor's decision where it can be computed on the event loop at once; None where it has to wait, which is what `decide` does.

        Raises:
            ExpiredError, NotReadyError, InferenceError: as `decide`.
        """
        answered = self.batcher.now(observation, detail, received_ns=received_ns, deadline_ns=deadline_ns)
        return None if answered is None else _decision(answered)

    def rehearse(self, observation: FloatArray, detail: Detail) -> Decision:
        """The actor's decision, computed to keep the way to it warm; nothing counts it.

        Raises:
            InferenceError: as `decide`.
        """
        row = self.runtime.rows(observation[np.newaxis], detail)[0]
        layout = self.runtime.layouts[detail]
        return Decision(row=row, layout=layout, selected=None, queue_ns=0, inference_ns=0, own_ns=0)

    async def _best(self, observation: FloatArray, detail: Detail, asking: Asking, selection: Selection) -> Decision:
        observations = observation[np.newaxis]
        law = Detail.SAMPLES if detail is Detail.SAMPLES else Detail.SUMMARY
        with self.batcher.parts():
            actor = await self._ask(observations, None, Detail.NONE, asking)
            candidates = self._candidates.around(actor.rows[0], selection)
            assessed = await self._assess(observations, candidates[np.newaxis], law, asking)
        selected = pick(selection.rule, assessed.outputs[SCORES[selection.rule]][0])
        layout = self.runtime.layouts[detail]
        row = np.concatenate([candidates[selected.index], assessed.rows[0, selected.index]])
        return Decision(
            row=row[: layout.width],
            layout=layout,
            selected=selected,
            # Received once, so what the second question waited is what passed since, less the first inference.
            queue_ns=assessed.queue_ns - actor.inference_ns,
            inference_ns=actor.inference_ns + assessed.inference_ns,
            own_ns=actor.own_ns + assessed.own_ns,
        )

    async def infer(self, observations: ArrayLike, detail: Detail, asking: Asking) -> Answered:
        """Actions, and their laws, of several observations (B, S) at once, under the names of the bundle's outputs.

        Raises:
            InvalidInputError: wrong shape, too many rows, or a number that is not finite; names row and channel.
            ExpiredError, OverloadedError, NotReadyError, InferenceError: as `decide`.
        """
        rows = self._checked_rows(observations)
        step = self.batcher.most_rows
        with self.batcher.parts():
            pieces = [
                await self._ask(rows[start : start + step], None, detail, asking) for start in range(0, len(rows), step)
            ]
        return _joined(pieces, axis=0)

    async def assess(self, observations: ArrayLike, candidates: ArrayLike, detail: Detail, asking: Asking) -> Answered:
        """The laws of candidate actions (B, C, A) at observations (B, S), under the names of the bundle's outputs.

        Raises:
            InvalidInputError: as `infer`; a candidate outside the limits; or `Detail.NONE`, which would ask nothing.
            ExpiredError, OverloadedError, NotReadyError, InferenceError: as `decide`.
        """
        if detail is Detail.NONE:
            raise InvalidInputError("detail must be summary or samples: without it nothing is said of a candidate")
        rows = self._checked_rows(observations)
        proposed = np.asarray(candidates, np.float32)
        if proposed.ndim == 3 and proposed.shape[0] * proposed.shape[1] > MAX_ROWS:
            raise InvalidInputError(
                f"candidates must be at most {MAX_ROWS} over all rows, got {proposed.shape[0] * proposed.shape[1]}; "
                "split the request"
            )
        self.runtime.check_candidates(len(rows), proposed)
        with self.batcher.parts():
            return await self._assess(rows, proposed, detail, asking)

    async def _assess(self, rows: FloatArray, candidates: FloatArray, detail: Detail, asking: Asking) -> Answered:
        """In pieces that hold up nobody else for long."""
        most, count = self.batcher.most_rows, candidates.shape[1]
        step, parts = max(1, most // count), []
        for row in range(0, len(rows), step):
            own, of_own = rows[row : row + step], candidates[row : row + step]
            pieces = [
                await self._ask(own, of_own[:, start : start + most], detail, asking) for start in range(0, count, most)
            ]
            parts.append(_joined(pieces, axis=1))
        return _joined(parts, axis=0)

    def _checked_rows(self, observations: ArrayLike) -> FloatArray:
        rows = np.asarray(observations, np.float32)
        size = len(self._observation_names)
        if rows.ndim != 2 or rows.shape[1] != size or not 1 <= len(rows) <= MAX_ROWS:
            raise InvalidInputError(
                f"observation must have shape (rows, {size}) with 1 to {MAX_ROWS} rows, got {rows.shape}; "
                f"the policy expects {listed(self._observation_names)}"
            )
        wrong = ~np.isfinite(rows)
        if wrong.any():
            row, index = map(int, np.argwhere(wrong)[0])
            raise InvalidInputError(
                f"observation must be finite, got {rows[row, index]} for {self._observation_names[index]!r} at index "
                f"{index} of row {row}; send a finite number"
            )
        return rows

    async def _ask(
        self, observations: FloatArray, candidates: FloatArray | None, detail: Detail, asking: Asking
    ) -> Answered:
        """One of the parts of a question."""
        return await self.batcher.ask(_question(observations, candidates, detail, asking), begun=True)

    async def close(self) -> None:
        """Refuses what comes from now on; returns when all that waits has its answer."""
        await self.batcher.close()


def _question(observations: FloatArray, candidates: FloatArray | None, detail: Detail, asking: Asking) -> Question:
    return Question(
        observations=observations,
        candidates=candidates,
        detail=detail,
        received_ns=asking.received_ns,
        deadline_ns=asking.deadline_ns,
        client=asking.client,
        promised=asking.promised,
    )


def _decision(answered: Answered) -> Decision:
    """Of a single row."""
    rows, layout, queue_ns, inference_ns, own_ns = answered
    return Decision(rows[0], layout, None, queue_ns, inference_ns, own_ns)


def listed(names: Sequence[str]) -> str:
    """Names for a message, of bounded length."""
    shown = ", ".join(repr(name[:64]) for name in names[:16])
    return shown if len(names) <= 16 else f"{shown} and {len(names) - 16} more"


def summary_of(values: Mapping[str, FloatArray]) -> Summary:
    """The summary among the outputs of one row."""
    return Summary(
        return_mean=float(values["return_mean"]),
        return_std=float(values["return_std"]),
        return_quantiles_raw=values["return_quantiles_raw"],
        return_quantiles_corrected=values.get("return_quantiles_corrected"),
        return_cvar=float(values["return_cvar"]),
        return_below_threshold=float(values["return_below_threshold"]),
        gradient_mean=values["gradient_mean"],
        gradient_std=values["gradient_std"],
        gradient_norm_quantiles=values["gradient_norm_quantiles"],
        gradient_sign_agreement=values["gradient_sign_agreement"],
        gradient_resultant_length=float(values["gradient_resultant_length"]),
        critic_disagreement=float(values["critic_disagreement"]),
        data_distance=float(values["data_distance"]),
        observation_gradient_mean=values.get("observation_gradient_mean"),
    )


def samples_of(values: Mapping[str, FloatArray]) -> Samples:
    """The raw samples among the outputs of one row."""
    return Samples(returns=values["return_samples"], action_gradients=values["gradient_samples"])


def _joined(pieces: Sequence[Answered], *, axis: int) -> Answered:
    first = pieces[0]
    if len(pieces) == 1:
        return first
    rows = np.concatenate([piece.rows for piece in pieces], axis)
    return Answered(
        rows=rows,
        layout=first.layout,
        queue_ns=first.queue_ns,
        inference_ns=sum(piece.inference_ns for piece in pieces),
        own_ns=sum(piece.own_ns for piece in pieces),
    )


def _channels(channels: Sequence[ChannelLimits]) -> tuple[Channel, ...]:
    return tuple(
        Channel(name=c.name, unit=c.unit, low=limit(c.low, -math.inf), high=limit(c.high, math.inf)) for c in channels
    )
