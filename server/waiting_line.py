"""Who waits for one policy, in which order their turns come, and who is turned away when too many wait."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from server.errors import OverloadedError
from server.question import Answered, Question, alike

WAITING_LIMIT = 64
"""Questions that may wait for one policy, beside those within a promise, of which each session has one; more are refused."""
WAITING_PER_CLIENT = 16
"""Of these, how many one client may hold."""
UNHURRIED_NS = 10_000_000_000
"""What has no deadline is taken as if it had this one after receipt, so that a stream of others cannot put it off for ever."""


@dataclass(kw_only=True, eq=False)
class Waiting:
    """One question in the line."""

    question: Question
    turn: int
    """Rows that its client had asked for before, from when it last had nothing waiting (start-time fair queueing, Goyal et al., 1996)."""
    answer: "asyncio.Future[Answered]" = field(repr=False)

    @property
    def due_ns(self) -> int:
        """When its turn comes among equals."""
        question = self.question
        return question.received_ns + UNHURRIED_NS if question.deadline_ns is None else question.deadline_ns


class WaitingLine:
    """What waits for one policy."""

    def __init__(self, *, policy: str, cost_s: Callable[[int], float]) -> None:
        """An empty line.

        Args:
            policy: its name, for refusals.
            cost_s: seconds that so many rows take together.
        """
        self.on_length: Callable[[int], None] = lambda _length: None
        """Told how many wait, whenever that changes."""
        self._policy = policy
        self._cost_s = cost_s
        self._waiting: list[Waiting] = []
        self._turn = 0
        """The latest turn that was taken."""
        self._next_turns: dict[str, int] = {}
        """Of each client that asked lately."""

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Waiting]:
        return iter(self._waiting)

    def join(self, question: Question) -> Waiting:
        """The question's place at the end of the line.

        Raises:
            OverloadedError: too much waits, of this client or in all.
        """
        self._make_room(question)
        turn = max(self._turn, self._next_turns.get(question.client, 0))
        self._next_turns[question.client] = turn + question.rows
        waiting = Waiting(question=question, turn=turn, answer=asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self.on_length(len(self))
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """Without an answer, if its turn has not come yet."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            self.on_length(len(self))

    def forget_turns(self) -> None:
        """Nobody waits any more: whoever comes next owes nothing."""
        self._next_turns.clear()

    def take(self, now_ns: int, *, longest_s: float, fits: Callable[[int], bool]) -> list[Waiting]:
        """Those whose turn it is: the first in line, and what goes with it without making anyone late.

        Args:
            now_ns: monotonic nanoseconds.
            longest_s: less than this all of them take together, unless the first alone takes longer.
            fits: whether a question of so many rows may be among them at all.
        """
        waiting = [one for one in self._in_order() if fits(one.question.rows)]
        if not waiting:
            return []
        first, *others = waiting
        taken, rows, due_ns = [first], first.question.rows, self._limit_ns(first, now_ns)
        for other in others:
            joined, earliest_ns = rows + other.question.rows, min(due_ns, self._limit_ns(other, now_ns))
            cost_s = self._cost_s(joined)
            if cost_s < longest_s and now_ns + 1e9 * cost_s <= earliest_ns and alike(first.question, other.question):
                taken.append(other)
                rows, due_ns = joined, earliest_ns
        for one in taken:
            self._waiting.remove(one)
            self._turn = max(self._turn, one.turn)
        self._next_turns = {client: turn for client, turn in self._next_turns.items() if turn > self._turn}
        self.on_length(len(self))
        return taken

    def _in_order(self) -> list[Waiting]:
        """Promised before not; who has had no more than its share before who has; the earliest deadline first."""
        return sorted(
            self._waiting,
            key=lambda waiting: (
                not waiting.question.promised,
                max(0, waiting.turn - self._turn),
                waiting.due_ns,
            ),
        )

    def _limit_ns(self, waiting: Waiting, now_ns: int) -> float:
        """When it has to be computed; without limit where it would be late alone, too, so that it makes nobody else wait."""
        deadline_ns = waiting.question.deadline_ns
        alone_ns = now_ns + 1e9 * self._cost_s(waiting.question.rows)
        return math.inf if deadline_ns is None or alone_ns > deadline_ns else deadline_ns

    def _make_room(self, question: Question) -> None:
        """Where too much waits, sheds the latest of the client that holds most, unless that is the one who asks."""
        own = sum(waiting.question.client == question.client for waiting in self._waiting)
        if own >= WAITING_PER_CLIENT:
            raise self._overloaded(f"{own} observations of this client")
        if question.promised or len(self) < WAITING_LIMIT:
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
        seconds = self._cost_s(sum(waiting.question.rows for waiting in self._waiting))
        return OverloadedError(
            f"policy {self._policy!r} has {held} waiting, its limit; retry later",
            retry_after_ms=max(1, math.ceil(1000 * seconds)),
        )
