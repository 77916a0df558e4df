"""Where one policy's questions are computed: at once while nobody else asks, joined with what waits under load.

Nothing is ever held back in the hope of company. What waits is taken in the order of promise, fairness and deadline. Answers do not hang on
what they were joined with: the graphs that dst-export writes give a row the same bits alone and inside a batch.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from protos.codec import FloatArray
from server.errors import InferenceError, NotReadyError, ServingError
from server.question import Answered, Clock, Question, check_unexpired
from server.row_layout import RowLayout
from server.runtime import Detail, Runtime
from server.waiting_line import Waiting, WaitingLine

logger = logging.getLogger(__name__)

INLINE_BELOW_S = 0.001
"""What is computed within this time runs on the event loop itself: handing it to a thread costs more than that, and
health checks wait no longer than this. The rest runs in a thread of the policy's own."""
CROWD = 12
"""Control sessions from which on their questions are given the chance to join: the detour costs less than it then wins."""
LONGEST_S = 0.02
"""Longer than this nothing is computed at once, unless a single row takes longer: whoever comes then waits no more than that."""
LONGEST_BESIDE_PROMISES_S = 0.002
"""The same of what is joined, where a decision is computed on the event loop and a session has a promise."""


class Batcher:
    """Computes one policy's questions. Belongs to one event loop."""

    def __init__(self, runtime: Runtime, *, inline_below_s: float, clock: Clock) -> None:
        self.sessions = 0
        """Control sessions that are open: many are likely to ask at once, so their questions go through the queue, where they join."""
        self.promises = 0
        """Of these, how many have a promise."""
        self.on_batch: Callable[[int], None] = lambda _rows: None
        """Told the rows of every batch."""
        self.line = WaitingLine(policy=runtime.manifest.name, cost_s=runtime.cost_s)
        """What waits."""
        self._runtime = runtime
        self._name = runtime.manifest.name
        self._inline_below_s = inline_below_s
        self._clock = clock
        self._waking = False
        """Whether what waits is about to be looked at."""
        self._computing: Sequence[Waiting] = ()
        """What is being computed in the thread."""
        self._begun = 0
        """Questions in several parts that were begun."""
        self._computed_ns = 0
        """When something was computed last."""
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
        return bool(self.line or self._computing) or self._clock() - self._computed_ns < 1e9 * seconds

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
            raise NotReadyError(
                f"policy {self._name!r} was unloaded or replaced by another version; open a new session"
            )

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
        check_unexpired(deadline_ns, started_ns)
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
        return not (any(self._short(waiting.question.rows) for waiting in self.line))

    async def _queued(self, question: Question) -> Answered:
        waiting = self.line.join(question)
        self._idle.clear()
        self._wake()
        try:
            return await waiting.answer
        finally:
            self.line.leave(waiting)  # if the client went away

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

    def _computed(self, batch: Sequence[Waiting], done: "asyncio.Future[list[Answered | ServingError]]") -> None:
        self._computing = ()
        failure = done.exception()
        self._finished(batch, done.result() if failure is None else [failure] * len(batch))

    def _finished(self, batch: Sequence[Waiting], answers: Sequence[Answered | BaseException]) -> None:
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
        if not (self.line or self._computing or self._begun):
            self.line.forget_turns()
            self._idle.set()

    def _take(self) -> list[Waiting]:
        """What is computed next; beside what is long and computed in the thread, what is short."""
        if not self._computing:
            together_s = LONGEST_BESIDE_PROMISES_S if self.promises and self.inline else LONGEST_S
            return self.line.take(self._clock(), longest_s=together_s, fits=lambda _rows: True)
        if all(self._short(computing.question.rows) for computing in self._computing):
            return []  # it is over soon, and more joins meanwhile
        return self.line.take(self._clock(), longest_s=self._inline_below_s, fits=self._short)

    def _answers(self, questions: Sequence[Question]) -> list[Answered | ServingError]:
        """One answer each; a question that fails does not take those down that it was joined with."""
        now_ns = self._clock()
        alive = [question for question in questions if not question.expired(now_ns)]
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
        if len(questions) == 1:
            check_unexpired(questions[0].deadline_ns, started_ns)
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
