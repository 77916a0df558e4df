import asyncio

import numpy as np
import pytest

from server import batcher as batcher_module
from server import waiting_line
from server.errors import ExpiredError, InferenceError, NotReadyError, OverloadedError
from server.question import Question
from server.runtime import Detail
from server.served_policy import Asking, ServedPolicy
from tests.server.running import FakeClock, GatedRuntime

SECOND = 1_000_000_000


class Recorded(GatedRuntime):
    """The real runtime, which notes what it was asked for at once."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.batches: list[np.ndarray] = []
        self.poison: float | None = None

    def rows(self, observations, detail):
        values = super().rows(observations, detail)
        if hasattr(self, "batches"):
            self.batches.append(observations[:, 0].tolist())
            if self.poison is not None and self.poison in observations[:, 0]:
                raise InferenceError("spoiled")
        return values


@pytest.fixture
def runtime(loaded):
    runtime = Recorded(loaded, "cpu")
    runtime.inference_s, runtime._row_s = 0.002, 0.0001
    runtime.batches.clear()
    return runtime


def slow(runtime, clock):
    """A policy that is computed in its thread."""
    return ServedPolicy(runtime, inline_below_s=0.0, clock=clock)


def question(value, **asking):
    detail = asking.pop("detail", Detail.NONE)
    fields = {"client": str(value), "deadline_ns": None, "promised": False, "received_ns": 0, **asking}
    return Question(observations=np.float32([[value, 0, 0]]), candidates=None, detail=detail, **fields)


async def while_one_computes(policy, runtime, *questions):
    """What becomes of questions that come, in this order, while another is being computed."""
    runtime.armed = True
    first = asyncio.create_task(policy.batcher.ask(question(-1.0)))
    await asyncio.to_thread(runtime.wait_until_entered)
    tasks = []
    for later in questions:
        tasks.append(asyncio.create_task(policy.batcher.ask(later)))
        await asyncio.sleep(0)
    runtime.armed = False
    runtime.permitted.release()
    await first
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    await policy.close()
    return answers


def test_what_waits_of_different_robots_is_computed_together_and_answered_as_if_alone(runtime):
    values = [0.1, 0.2, 0.3]
    policy = slow(runtime, FakeClock())
    answers = asyncio.run(while_one_computes(policy, runtime, *map(question, values)))
    assert runtime.batches == [[-1.0], pytest.approx(values)]
    for value, answer in zip(values, answers, strict=True):
        alone = runtime.infer(np.float32([[value, 0, 0]]), Detail.NONE)[0]
        np.testing.assert_array_equal(answer.outputs["action"], alone)


def test_nobody_waits_for_company(runtime):
    policy = slow(runtime, FakeClock())

    async def one_after_the_other():
        for value in (0.1, 0.2):
            await policy.batcher.ask(question(value))
        await policy.close()

    asyncio.run(one_after_the_other())
    assert runtime.batches == [[pytest.approx(0.1)], [pytest.approx(0.2)]]


def test_joining_makes_nobody_late(runtime):
    """Two rows take 2.1 ms: one more than the first can afford."""
    clock = FakeClock()
    policy = slow(runtime, clock)
    tight = question(0.1, deadline_ns=clock.now + 2_050_000)
    answers = asyncio.run(while_one_computes(policy, runtime, tight, question(0.2)))
    assert runtime.batches[1:] == [[pytest.approx(0.1)], [pytest.approx(0.2)]]
    assert not any(isinstance(answer, Exception) for answer in answers)


def test_nothing_computed_at_once_takes_longer_than_the_bound(runtime, monkeypatch):
    monkeypatch.setattr(batcher_module, "LONGEST_S", 0.00225)
    policy = slow(runtime, FakeClock())
    asyncio.run(while_one_computes(policy, runtime, *(question(0.1 * n) for n in range(5))))
    assert [len(batch) for batch in runtime.batches] == [1, 3, 2]


def test_the_earliest_deadline_comes_first(runtime, monkeypatch):
    monkeypatch.setattr(batcher_module, "LONGEST_S", 0.0)
    clock = FakeClock()
    waiting = [question(n, deadline_ns=clock.now + due * SECOND) for n, due in ((1, 3), (2, 1), (3, 2))]
    asyncio.run(while_one_computes(slow(runtime, clock), runtime, question(4), *waiting))
    assert runtime.batches[1:] == [[2], [3], [1], [4]]


def test_what_was_promised_comes_before_what_was_not(runtime, monkeypatch):
    monkeypatch.setattr(batcher_module, "LONGEST_S", 0.0)
    clock = FakeClock()
    urgent = question(1, deadline_ns=clock.now + SECOND)
    promised = question(2, deadline_ns=clock.now + 2 * SECOND, promised=True)
    asyncio.run(while_one_computes(slow(runtime, clock), runtime, urgent, promised))
    assert runtime.batches[1:] == [[2], [1]]


def test_a_client_that_asks_much_delays_another_by_one_question_at_most(runtime, monkeypatch):
    monkeypatch.setattr(batcher_module, "LONGEST_S", 0.0)
    clock = FakeClock()
    greedy = [question(n, client="greedy", deadline_ns=clock.now + n * SECOND) for n in range(1, 8)]
    modest = question(9, client="modest")
    asyncio.run(while_one_computes(slow(runtime, clock), runtime, *greedy, modest))
    assert runtime.batches[1:3] == [[1], [9]]


def test_a_client_may_hold_only_its_share_of_the_queue(runtime, monkeypatch):
    monkeypatch.setattr(waiting_line, "WAITING_PER_CLIENT", 2)
    questions = [question(n, client="greedy") for n in range(3)]
    policy = slow(runtime, FakeClock())
    *held, refused, other = asyncio.run(while_one_computes(policy, runtime, *questions, question(9)))
    assert not any(isinstance(answer, Exception) for answer in (*held, other))
    assert isinstance(refused, OverloadedError)
    assert "2 observations of this client" in str(refused)
    assert refused.retry_after_ms == 3  # two rows: 2.1 ms


def test_expired_questions_are_not_computed_and_the_others_are(runtime):
    clock = FakeClock()
    expired = question(0.1, deadline_ns=clock.now)
    policy = slow(runtime, clock)
    gone, kept = asyncio.run(while_one_computes(policy, runtime, expired, question(0.2)))
    assert isinstance(gone, ExpiredError)
    assert kept.outputs["action"].shape == (1, 2)
    assert runtime.batches[1:] == [[pytest.approx(0.2)]]


def test_a_question_that_fails_does_not_take_down_those_it_was_joined_with(runtime):
    runtime.poison = 7.0
    policy = slow(runtime, FakeClock())
    good, bad, also_good = asyncio.run(while_one_computes(policy, runtime, question(1), question(7), question(2)))
    assert isinstance(bad, InferenceError)
    assert [answer.outputs["action"].shape for answer in (good, also_good)] == [(1, 2)] * 2


def test_questions_of_unlike_detail_are_not_joined(runtime):
    policy = slow(runtime, FakeClock())
    asyncio.run(while_one_computes(policy, runtime, question(1), question(2, detail=Detail.SUMMARY), question(3)))
    assert runtime.batches[1:] == [[1, 3], [2]]


def test_a_client_that_went_away_is_not_computed(runtime):
    policy = slow(runtime, FakeClock())

    async def leave():
        runtime.armed = True
        first = asyncio.create_task(policy.batcher.ask(question(1)))
        await asyncio.to_thread(runtime.wait_until_entered)
        second = asyncio.create_task(policy.batcher.ask(question(2)))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        runtime.armed = False
        runtime.permitted.release()
        await first
        await policy.close()

    asyncio.run(leave())
    assert runtime.batches == [[1]]


def test_short_questions_do_not_wait_for_a_long_one(runtime):
    """A row of this policy is computed on the event loop; a large question of it in the thread."""
    policy = ServedPolicy(runtime, inline_below_s=0.003, clock=FakeClock())

    async def short_beside_long():
        runtime.armed = True
        asking = Asking(received_ns=0)
        long = asyncio.create_task(policy.infer(np.zeros((64, 3)), Detail.NONE, asking))
        await asyncio.to_thread(runtime.wait_until_entered)
        runtime.armed = False
        await policy.batcher.ask(question(1))
        assert not long.done()
        runtime.permitted.release()
        await long
        await policy.close()

    asyncio.run(short_beside_long())


def test_large_questions_are_computed_in_pieces_and_equal_the_whole(runtime, monkeypatch):
    monkeypatch.setattr(batcher_module, "LONGEST_S", 0.0026)
    policy = slow(runtime, FakeClock())
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    candidates = np.random.default_rng(1).uniform(-0.4, 0.4, (20, 9, 2)).astype(np.float32)

    async def ask():
        asking = Asking(received_ns=0)
        inferred = await policy.infer(rows, Detail.SAMPLES, asking)
        assessed = await policy.assess(rows, candidates, Detail.SAMPLES, asking)
        await policy.close()
        return inferred, assessed

    inferred, assessed = asyncio.run(ask())
    assert max(len(batch) for batch in runtime.batches) <= 7
    whole = dict(zip(runtime.outputs[Detail.SAMPLES], runtime.infer(rows, Detail.SAMPLES), strict=True))
    assert inferred.outputs.keys() == whole.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(inferred.outputs[name], value)
    for name, value in runtime.assess(rows, candidates).items():
        np.testing.assert_array_equal(assessed.outputs[name], value)


def test_an_unloaded_policy_finishes_what_waits_and_refuses_the_rest(runtime):
    policy = slow(runtime, FakeClock())

    async def unload():
        runtime.armed = True
        first = asyncio.create_task(policy.batcher.ask(question(1)))
        await asyncio.to_thread(runtime.wait_until_entered)
        second = asyncio.create_task(policy.batcher.ask(question(2)))
        await asyncio.sleep(0)
        closing = asyncio.create_task(policy.close())
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError, match="was unloaded"):
            await policy.batcher.ask(question(3))
        assert not closing.done()
        runtime.permitted.release(2)
        await asyncio.gather(first, second, closing)

    asyncio.run(unload())
    assert runtime.batches == [[1], [2]]


def test_observations_of_many_robots_that_arrive_together_are_joined_on_the_event_loop_too(runtime):
    policy = ServedPolicy(runtime, inline_below_s=1.0, clock=FakeClock())

    async def together():
        policy.batcher.sessions = batcher_module.CROWD
        await asyncio.gather(policy.batcher.ask(question(1)), policy.batcher.ask(question(2)))
        await policy.close()

    asyncio.run(together())
    assert runtime.batches == [[1, 2]]
