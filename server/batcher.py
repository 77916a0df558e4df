"""Where one policy's questions are computed: at once while nobody else asks, joined with what waits under load.

Nothing is ever held back in the hope of company. What waits is taken in the order of promise, fairness and deadline. Answers do not hang on
what they were joined with: the graphs that dst-export writes give a row the same bits alone and inside a batch.
"""

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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
"""Questions that may wait for one policy, beside those within a promise, of which each session has one; more are refused."""
WAITING_PER_CLIENT = 16
"""Of these, how many one client may hold."""
UNHURRIED_NS = 10_000_000_000
"""What has no deadline is taken as if it had this one after receipt, so that a stream of others cannot put it off for ever."""
CROWD = 12
"""Control sessions from which on their questions are given the chance to join: the detour costs less than it then wins."""
LONGEST_S = 0.02
"""Longer than this nothing is computed at once, unless a single row takes longer: whoever comes then waits no more than that."""
LONGEST_BESIDE_PROMISES_S = 0.002
"""The same of what is joined, where a decision is computed on the event loop and a session has a promise."""


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
    own_ns: int
    """Its part of that, by rows."""

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
    def due_ns(self) -> int:
        """When its turn comes among equals."""
        question = self.question
        return question.received_ns + UNHURRIED_NS if question.deadline_ns is None else question.deadline_ns


class Batcher:
    """Computes one policy's questions. Belongs to one event loop."""

    def __init__(self, runtime: Runtime, *, inline_below_s: float, clock: Clock) -> None:
        self.sessions = 0
        """Control sessions that are open: many are likely to ask at once, so their questions go through the queue, where they join."""
        self.promises = 0
        """Of these, how many have a promise."""
        self.on_batch: Callable[[int], None] = _ignore
        """Told the rows of every batch."""
        self.on_waiting: Callable[[int], None] = _ignore
        """Told how many questions wait, whenever that changes."""
        self._runtime = runtime
        self._name = runtime.manifest.name
        self._inline_below_s = inline_below_s
        self._clock = clock
        self._waiting: list[_Waiting] = []
        self._waking = False
        """Whether what waits is about to be looked at."""
        self._computing: Sequence[_Waiting] = ()
        """What is being computed in the thread."""
        self._begun = 0
        """Questions in several parts that were begun."""
        self._computed_ns = 0
        """When something was computed last."""
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

    def busy_within(self, seconds: float) -> bool:
        """Whether anything waits, is computed, or was computed within so many seconds."""
        return bool(self._waiting or self._computing) or self._clock() - self._computed_ns < 1e9 * seconds

    def longest_s(self, rows: int) -> float:
        """The longest that a promised question of so many rows may have to wait for what is being computed, in seconds."""
        return LONGEST_BESIDE_PROMISES_S if self._short(rows) else max(LONGEST_S, self._runtime.cost_s(1))

    @property
    def most_rows(self) -> int:
        """How many rows one question should have at most, lest it hold up others for longer than `LONGEST_S`."""
        return self._runtime.rows_within(LONGEST_S)

    def _short(self, rows: int) -> bool:
        """Whether so many rows are computed on the event loop."""
        return self._runtime.cost_s(rows) < self._inline_below_s

    def _check_open(self) -> None:
        if self._closed:
            raise NotReadyError(f"policy {self._name!r} was unloaded; open a new session once it is loaded again")

    @contextlib.contextmanager
    def parts(self) -> Iterator[None]:
        """What is asked inside, with `begun`, is one question in several parts: a policy that is unloaded answers all or none.

        Raises:
            NotReadyError: the policy was unloaded before.
        """
        self._check_open()
        self._begun += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._begun -= 1
            self._settle()

    async def ask(self, question: Question, *, begun: bool = False) -> Answered:
        """The answer to one question, or to one of the `parts` of a larger one.

        Raises:
            ExpiredError: its deadline passed while it waited.
            OverloadedError: too much is waiting, of this client or in all.
            NotReadyError: the policy was unloaded.
            InferenceError: the policy gave no usable output.
        """
        if not begun:
            self._check_open()
        if self._at_once(question.rows):
            answer = self._compute([question])[0]
            self.on_batch(question.rows)
            return answer
        return await self._queued(question)

    def now(
        self, observation: FloatArray, detail: Detail, *, received_ns: int, deadline_ns: int | None
    ) -> Answered | None:
        """The policy's own answer to one observation (S,), where it can be computed on the event loop at once; None where it has to wait.

        What `ask` does, with fewer steps: it is the way of most decisions.

        Raises:
            ExpiredError, NotReadyError, InferenceError: as `ask`.
        """
        self._check_open()
        if not self._at_once(1):
            return None
        started_ns = self._clock()
        if deadline_ns is not None and started_ns >= deadline_ns:
            raise _expired_error(started_ns, deadline_ns)
        try:
            rows = self._runtime.rows(observation[np.newaxis], detail)
        except InferenceError as error:
            self._log(error)
            raise
        self._computed_ns = ended_ns = self._clock()
        took_ns = ended_ns - started_ns
        self.on_batch(1)
        return Answered(rows, self._runtime.layouts[detail], started_ns - received_ns, took_ns, took_ns)

    def _at_once(self, rows: int) -> bool:
        """Whether so many rows are computed on the event loop now; what is short need not wait while the thread computes what is long."""
        if self.sessions >= CROWD or not self._short(rows):
            return False
        return not (self._waiting and any(self._short(waiting.question.rows) for waiting in self._waiting))

    async def _queued(self, question: Question) -> Answered:
        self._make_room(question)
        turn = max(self._turn, self._next_turns.get(question.client, 0))
        self._next_turns[question.client] = turn + question.rows
        waiting = _Waiting(question=question, turn=turn, answer=asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self.on_waiting(len(self._waiting))
        self._idle.clear()
        self._wake()
        try:
            return await waiting.answer
        finally:
            if waiting in self._waiting:  # the client went away
                self._waiting.remove(waiting)
                self.on_waiting(len(self._waiting))

    def _make_room(self, question: Question) -> None:
        """Where too much waits, sheds the latest of the client that holds most, unless that is the one who asks."""
        own = sum(waiting.question.client == question.client for waiting in self._waiting)
        if own >= WAITING_PER_CLIENT:
            raise self._overloaded(f"{own} observations of this client")
        if question.promised or len(self._waiting) < WAITING_LIMIT:
            return
        unpromised = [waiting for waiting in self._waiting if not waiting.question.promised]
        if len(unpromised) < WAITING_LIMIT:
            return
        ((greediest, most),) = Counter(waiting.question.client for waiting in unpromised).most_common(1)
        if most <= own + 1:
            raise self._overloaded(f"{len(unpromised)} observations")
        shed = next(waiting for waiting in reversed(unpromised) if waiting.question.client == greediest)
        self._waiting.remove(shed)
        if not shed.answer.done():
            shed.answer.set_exception(
                self._overloaded(f"{most} observations of this client and {len(unpromised)} in all")
            )

    def _overloaded(self, held: str) -> OverloadedError:
        seconds = self._runtime.cost_s(sum(waiting.question.rows for waiting in self._waiting))
        return OverloadedError(
            f"policy {self._name!r} has {held} waiting, its limit; retry later",
            retry_after_ms=max(1, math.ceil(1000 * seconds)),
        )

    def _wake(self) -> None:
        """Has what waits looked at once all that has arrived by now is in."""
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        self._waking = False
        batch = self._take()
        if not batch:
            self._settle()
            return
        questions = [waiting.question for waiting in batch]
        if self._short(sum(question.rows for question in questions)):
            try:
                answers: Sequence[Answered | BaseException] = self._answers(questions)
            except Exception as error:  # noqa: BLE001 - it is raised where the answer is awaited
                answers = [error] * len(batch)
            self._finished(batch, answers)
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"infer-{self._name}")
        self._computing = batch
        computing = asyncio.get_running_loop().run_in_executor(self._thread, self._answers, questions)
        computing.add_done_callback(lambda done: self._computed(batch, done))
        self._wake()

    def _computed(self, batch: Sequence[_Waiting], done: "asyncio.Future[list[Answered | ServingError]]") -> None:
        self._computing = ()
        failure = done.exception()
        self._finished(batch, done.result() if failure is None else [failure] * len(batch))

    def _finished(self, batch: Sequence[_Waiting], answers: Sequence[Answered | BaseException]) -> None:
        self.on_batch(sum(waiting.question.rows for waiting in batch))
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, BaseException):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
        self._wake()

    def _settle(self) -> None:
        if not (self._waiting or self._computing or self._begun):
            self._next_turns.clear()
            self._idle.set()

    def _take(self) -> list[_Waiting]:
        """What is computed next: the first in line, and what goes with it without making anyone late."""
        waiting, longest_s = self._in_order(), LONGEST_S
        if self.promises and self.inline:
            longest_s = LONGEST_BESIDE_PROMISES_S
        if self._computing:
            if all(self._short(computing.question.rows) for computing in self._computing):
                return []  # it is over soon, and more joins meanwhile
            waiting, longest_s = [one for one in waiting if self._short(one.question.rows)], self._inline_below_s
        if not waiting:
            return []
        now_ns = self._clock()
        first, *others = waiting
        batch, rows, due_ns = [first], first.question.rows, self._limit_ns(first, now_ns)
        for other in others:
            joined, earliest_ns = rows + other.question.rows, min(due_ns, self._limit_ns(other, now_ns))
            cost_s = self._runtime.cost_s(joined)
            if cost_s < longest_s and now_ns + 1e9 * cost_s <= earliest_ns and _alike(first.question, other.question):
                batch.append(other)
                rows, due_ns = joined, earliest_ns
        for one in batch:
            self._waiting.remove(one)
            self._turn = max(self._turn, one.turn)
        self._next_turns = {client: turn for client, turn in self._next_turns.items() if turn > self._turn}
        self.on_waiting(len(self._waiting))
        return batch

    def _limit_ns(self, waiting: _Waiting, now_ns: int) -> float:
        """When it has to be computed; without limit where it would be late alone, too, so that it makes nobody else wait."""
        deadline_ns = waiting.question.deadline_ns
        alone_ns = now_ns + 1e9 * self._runtime.cost_s(waiting.question.rows)
        return math.inf if deadline_ns is None or alone_ns > deadline_ns else deadline_ns

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
            raise _expired_error(started_ns, first.deadline_ns)
        try:
            rows, layout = self._rows(questions)
        except InferenceError as error:
            self._log(error)
            raise
        self._computed_ns = self._clock()
        inference_ns = self._computed_ns - started_ns
        answers, start, all_rows = [], 0, sum(question.rows for question in questions)
        for question in questions:
            stop = start + len(question.observations)
            queue_ns = started_ns - question.received_ns
            answers.append(
                Answered(
                    rows=rows[start:stop],
                    layout=layout,
                    queue_ns=queue_ns,
                    inference_ns=inference_ns,
                    own_ns=inference_ns * question.rows // all_rows,
                )
            )
            start = stop
        return answers

    def _log(self, error: InferenceError) -> None:
        version = self._runtime.manifest.version
        logger.error("policy %s version %s: %s", self._name, version, error, exc_info=error.__cause__)

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


def _expired_error(now_ns: int, deadline_ns: int) -> ExpiredError:
    late_ms = (now_ns - deadline_ns) / 1e6
    return ExpiredError(f"the observation expired {late_ms:.1f} ms before it could be computed; send a newer one")


def _alike(one: Question, other: Question) -> bool:
    """Whether one run of a graph can answer both, and nobody who has a promise waits for somebody who has none."""
    if one.promised is not other.promised:
        return False
    if one.candidates is None or other.candidates is None:
        return one.detail is other.detail and one.candidates is other.candidates
    return one.detail is other.detail and one.candidates.shape[1] == other.candidates.shape[1]


def _ignore(_number: int) -> None:
    pass
