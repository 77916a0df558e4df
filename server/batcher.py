"""Where one policy's questions are computed: at once while nobody else asks, joined with what waits under load.

Nothing is ever held back in the hope of company. What waits is taken in the order of promise, fairness and deadline. Answers do not hang on
what they were joined with: the graphs that dst-export writes give a row the same bits alone and inside a batch.
"""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from protos.codec import FloatArray
from server.errors import ExpiredError, InferenceError, NotReadyError, OverloadedError, ServingError
from server.row_layout import RowLayout
from server.runtime import Detail, Runtime

logger = logging.getLogger(__name__)

Clock = Callable[[], int]
INLINE_BELOW_S = 0.001
"""What is computed within this time runs on the event loop itself: handing it to a thread costs more than that, and
health checks wait no longer than this. The rest runs in a thread of the policy's own."""
WAITING_LIMIT = 64
"""Questions that may wait for one policy; more are refused."""
WAITING_PER_CLIENT = 16
"""Of these, how many one client may hold."""
CROWD = 8
"""Control sessions from which on their questions are given the chance to join: the detour costs less than it then wins."""
LONGEST_S = 0.02
"""Longer than this nothing is computed at once, unless a single row takes longer: whoever comes then waits no more than that."""


class Question(NamedTuple):
    """Rows that one client wants computed."""

    observations: FloatArray
    """(B, S), checked and finite."""
    candidates: FloatArray | None
    """(B, C, A), checked: the law of these actions. None: the policy's own action, and its law."""
    detail: Detail
    received_ns: int
    deadline_ns: int | None
    """After it nothing is computed."""
    client: str
    """Who asks: what one client has waiting holds up nobody else."""
    promised: bool
    """Within a rate that was granted, so it comes before all that was not."""

    @property
    def rows(self) -> int:
        """Rows of the graph that it takes."""
        return len(self.observations) * (1 if self.candidates is None else self.candidates.shape[1])


class Answered(NamedTuple):
    """What was computed for one question."""

    rows: FloatArray
    """(B, width), or (B, C, width) of candidates."""
    layout: RowLayout
    """Of the rows."""
    queue_ns: int
    """From receipt to the start of inference."""
    inference_ns: int
    """Inference, of all that was joined, and the checks of its outputs."""

    @property
    def outputs(self) -> Mapping[str, FloatArray]:
        """Output name to (B, ...), or (B, C, ...) of candidates."""
        return self.layout.split(self.rows)


@dataclass(kw_only=True, eq=False)
class _Waiting:
    question: Question
    turn: int
    """Rows that its client had asked for before, from when it last had nothing waiting (start-time fair queueing, Goyal et al., 1996)."""
    answer: "asyncio.Future[Answered]" = field(repr=False)

    @property
    def due_ns(self) -> float:
        deadline_ns = self.question.deadline_ns
        return math.inf if deadline_ns is None else deadline_ns


class Batcher:
    """Computes one policy's questions. Belongs to one event loop."""

    def __init__(self, runtime: Runtime, *, inline_below_s: float, clock: Clock) -> None:
        self.sessions = 0
        """Control sessions that are open: many are likely to ask at once, so their questions go through the queue, where they join."""
        self.on_batch: Callable[[int], None] = _ignore
        """Told the rows of every batch."""
        self.on_waiting: Callable[[int], None] = _ignore
        """Told how many questions wait, whenever that changes."""
        self._runtime = runtime
        self._name = runtime.manifest.name
        self._inline_below_s = inline_below_s
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._running = False
        """Whether a batch is being computed or about to be taken."""
        self._turn = 0
        """The latest turn that was taken."""
        self._next_turns: dict[str, int] = {}
        """Of each client that asked lately."""
        self._thread: ThreadPoolExecutor | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def inline(self) -> bool:
        """Whether a single row is computed on the event loop."""
        return self._runtime.cost_s(1) < self._inline_below_s

    @property
    def longest_s(self) -> float:
        """The longest that a question may have to wait for one that is being computed, in seconds."""
        return self._inline_below_s if self.inline else max(LONGEST_S, self._runtime.cost_s(1))

    @property
    def most_rows(self) -> int:
        """How many rows one question should have at most, lest it hold up others for longer than `LONGEST_S`."""
        return self._runtime.rows_within(LONGEST_S)

    async def ask(self, question: Question) -> Answered:
        """The answer to one question.

        Raises:
            ExpiredError: its deadline passed while it waited.
            OverloadedError: too much is waiting, of this client or in all.
            NotReadyError: the policy was unloaded.
            InferenceError: the policy gave no usable output.
        """
        if self._closed:
            raise NotReadyError(f"policy {self._name!r} was unloaded; open a new session once it is loaded again")
        # While the thread is busy with something long, something short need not wait for it.
        alone = not self._waiting and self.sessions < CROWD
        if alone and self._runtime.cost_s(question.rows) < self._inline_below_s:
            answer = self._compute([question])[0]
            self.on_batch(question.rows)
            return answer
        return await self._queued(question)

    async def _queued(self, question: Question) -> Answered:
        self._check_room(question)
        turn = max(self._turn, self._next_turns.get(question.client, 0))
        self._next_turns[question.client] = turn + question.rows
        waiting = _Waiting(question=question, turn=turn, answer=asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self.on_waiting(len(self._waiting))
        if not self._running:
            self._running = True
            self._idle.clear()
            asyncio.get_running_loop().call_soon(self._next)
        try:
            return await waiting.answer
        finally:
            if waiting in self._waiting:  # the client went away
                self._waiting.remove(waiting)
                self.on_waiting(len(self._waiting))

    def _check_room(self, question: Question) -> None:
        own = sum(waiting.question.client == question.client for waiting in self._waiting)
        if own < WAITING_PER_CLIENT and len(self._waiting) < WAITING_LIMIT:
            return
        seconds = self._runtime.cost_s(sum(waiting.question.rows for waiting in self._waiting))
        held = (
            f"{len(self._waiting)} observations" if own < WAITING_PER_CLIENT else f"{own} observations of this client"
        )
        raise OverloadedError(
            f"policy {self._name!r} has {held} waiting, its limit; retry later",
            retry_after_ms=max(1, math.ceil(1000 * seconds)),
        )

    def _next(self) -> None:
        batch = self._take()
        if not batch:
            self._running = False
            self._next_turns.clear()
            self._idle.set()
            return
        questions = [waiting.question for waiting in batch]
        loop = asyncio.get_running_loop()
        if self._runtime.cost_s(sum(question.rows for question in questions)) < self._inline_below_s:
            done: asyncio.Future[list[Answered | ServingError]] = loop.create_future()
            done.add_done_callback(lambda done: self._finished(batch, done))
            try:
                done.set_result(self._answers(questions))
            except Exception as error:  # noqa: BLE001 - it is raised where the answer is awaited
                done.set_exception(error)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"infer-{self._name}")
        computing = loop.run_in_executor(self._thread, self._answers, questions)
        computing.add_done_callback(lambda done: self._finished(batch, done))

    def _finished(self, batch: Sequence[_Waiting], done: "asyncio.Future[list[Answered | ServingError]]") -> None:
        self.on_batch(sum(waiting.question.rows for waiting in batch))
        failure = done.exception()
        answers = [failure] * len(batch) if failure is not None else done.result()
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, BaseException):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
        self._next()

    def _take(self) -> list[_Waiting]:
        """What is computed next: the first in line, and what goes with it without making anyone late."""
        if not self._waiting:
            return []
        now_ns = self._clock()
        first, *others = self._in_order()
        batch, rows, due_ns = [first], first.question.rows, first.due_ns
        for waiting in others:
            joined, earliest_ns = rows + waiting.question.rows, min(due_ns, waiting.due_ns)
            cost_s = self._runtime.cost_s(joined)
            affordable = cost_s <= LONGEST_S and now_ns + 1e9 * cost_s <= earliest_ns
            if affordable and _alike(first.question, waiting.question):
                batch.append(waiting)
                rows, due_ns = joined, earliest_ns
        for waiting in batch:
            self._waiting.remove(waiting)
            self._turn = max(self._turn, waiting.turn)
        self._next_turns = {client: turn for client, turn in self._next_turns.items() if turn > self._turn}
        self.on_waiting(len(self._waiting))
        return batch

    def _in_order(self) -> list[_Waiting]:
        """Promised before not; who has had no more than its share before who has; the earliest deadline first."""
        return sorted(
            self._waiting,
            key=lambda waiting: (
                not waiting.question.promised,
                max(0, waiting.turn - self._turn),
                waiting.due_ns,
            ),
        )

    def _answers(self, questions: Sequence[Question]) -> list[Answered | ServingError]:
        """One answer each; a question that fails does not take those down that it was joined with."""
        now_ns = self._clock()
        alive = [question for question in questions if not _expired(question, now_ns)]
        answers: dict[int, Answered | ServingError] = {}
        try:
            if len(alive) > 1:
                computed: Sequence[Answered] = self._compute(alive)
                answers = {id(question): answer for question, answer in zip(alive, computed, strict=True)}
        except InferenceError:
            logger.warning("policy %s: a joined batch of %d failed; computing each alone", self._name, len(alive))
        return [answers.get(id(question)) or self._alone(question) for question in questions]

    def _alone(self, question: Question) -> Answered | ServingError:
        try:
            return self._compute([question])[0]
        except ServingError as error:
            return error

    def _compute(self, questions: Sequence[Question]) -> list[Answered]:
        started_ns = self._clock()
        first = questions[0]
        if len(questions) == 1 and _expired(first, started_ns):
            assert first.deadline_ns is not None
            raise ExpiredError(
                f"the observation expired {(started_ns - first.deadline_ns) / 1e6:.1f} ms before it could be computed; "
                "send a newer one"
            )
        try:
            rows, layout = self._rows(questions)
        except InferenceError as error:
            version = self._runtime.manifest.version
            logger.error("policy %s version %s: %s", self._name, version, error, exc_info=error.__cause__)  # noqa: TRY400
            raise
        inference_ns = self._clock() - started_ns
        answers, start = [], 0
        for question in questions:
            stop = start + len(question.observations)
            queue_ns = started_ns - question.received_ns
            answers.append(Answered(rows=rows[start:stop], layout=layout, queue_ns=queue_ns, inference_ns=inference_ns))
            start = stop
        return answers

    def _rows(self, questions: Sequence[Question]) -> tuple[FloatArray, RowLayout]:
        first, detail = questions[0], questions[0].detail
        if len(questions) == 1:
            observations, candidates = first.observations, first.candidates
        else:
            observations = np.concatenate([question.observations for question in questions])
            own = [question.candidates for question in questions if question.candidates is not None]
            candidates = np.concatenate(own) if own else None
        if candidates is None:
            return self._runtime.rows(observations, detail), self._runtime.layouts[detail]
        return self._runtime.law_rows(observations, candidates, detail), self._runtime.law_layouts[detail]

    async def close(self) -> None:
        """Refuses what comes from now on; returns when all that waits has its answer."""
        self._closed = True
        await self._idle.wait()
        if self._thread is not None:
            self._thread.shutdown()


def _expired(question: Question, now_ns: int) -> bool:
    return question.deadline_ns is not None and now_ns >= question.deadline_ns


def _alike(one: Question, other: Question) -> bool:
    """Whether one run of a graph can answer both."""
    if one.candidates is None or other.candidates is None:
        return one.detail is other.detail and one.candidates is other.candidates
    return one.detail is other.detail and one.candidates.shape[1] == other.candidates.shape[1]


def _ignore(_number: int) -> None:
    pass
