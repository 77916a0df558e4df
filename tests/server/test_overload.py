"""More is asked than can be computed: who is shed, who waits for whom, what is promised."""

import asyncio

import grpc
import numpy as np
import pytest

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from server import batcher as batcher_module
from server import waiting_line
from server.admission import LEAST_DECISIONS, WIRE_RANGE_S, Admission
from server.core import Core
from server.errors import ExpiredError, NotReadyError, OverloadedError
from server.runtime import Detail
from server.selection import Rule, Selection, pick
from server.served_policy import MAX_ROWS, Asking, ServedPolicy
from sim_bridge.channel import open_channel
from tests.server.running import PATIENCE_S, SECOND, FakeClock, Running, eventually
from tests.server.test_batcher import Recorded, question, slow, while_one_computes

MS = 1_000_000
OBSERVATION = [0.1, 0.2, 0.3]


@pytest.fixture
def runtime(loaded):
    """One row takes 2 ms, each further one 0.1 ms."""
    runtime = Recorded(loaded, "cpu")
    runtime.inference_s, runtime._row_s = 0.002, 0.0001
    runtime.batches.clear()
    return runtime


@pytest.fixture
def one_at_a_time(monkeypatch):
    """Nothing is joined."""
    monkeypatch.setattr(batcher_module, "LONGEST_S", 0.0)


def refused(answers):
    return [isinstance(answer, OverloadedError) for answer in answers]


def test_clients_that_fill_the_queue_do_not_shut_out_another(runtime, monkeypatch):
    monkeypatch.setattr(waiting_line, "WAITING_LIMIT", 4)
    greedy = [question(n, client=f"greedy {n % 2}") for n in range(4)]
    answers = asyncio.run(while_one_computes(slow(runtime, FakeClock()), runtime, *greedy, question(9)))
    # The latest of one that holds most is shed instead.
    assert refused(answers) == [False, False, True, False, False]
    assert answers[2].retry_after_ms >= 1


def test_a_full_queue_in_which_all_hold_as_much_refuses_the_newcomer(runtime, monkeypatch):
    monkeypatch.setattr(waiting_line, "WAITING_LIMIT", 3)
    answers = asyncio.run(while_one_computes(slow(runtime, FakeClock()), runtime, *map(question, range(4))))
    assert refused(answers) == [False, False, False, True]


def test_what_was_promised_is_never_shed(runtime, monkeypatch):
    monkeypatch.setattr(waiting_line, "WAITING_LIMIT", 2)
    promised = [question(n, promised=True) for n in range(3)]
    others = [question(n, client=str(n)) for n in range(10, 14)]
    answers = asyncio.run(while_one_computes(slow(runtime, FakeClock()), runtime, *others[:2], *promised, *others[2:]))
    assert refused(answers) == [False, False, False, False, False, True, True]


def test_what_comes_too_late_anyway_keeps_nobody_from_joining(runtime):
    """Alone it would take 2 ms, and it has 1 ms left: waiting for others makes it no later."""
    clock = FakeClock()
    doomed = question(0.1, deadline_ns=clock.now + MS)
    asyncio.run(while_one_computes(slow(runtime, clock), runtime, doomed, question(0.2), question(0.3)))
    assert [len(batch) for batch in runtime.batches] == [1, 3]


@pytest.mark.usefixtures("one_at_a_time")
def test_a_question_without_deadline_is_not_put_off_for_ever(runtime):
    """Ever new clients whose deadlines are near at hand come faster than they are computed."""
    clock = FakeClock()
    policy = slow(runtime, clock)

    async def asked_for_ever():
        runtime.armed = True
        tasks = [asyncio.create_task(policy.batcher.ask(question(-1.0, received_ns=clock.now)))]
        await asyncio.to_thread(runtime.wait_until_entered)
        patient = asyncio.create_task(policy.batcher.ask(question(7.0, received_ns=clock.now)))
        for n in range(100):
            for client in (f"{n}a", f"{n}b"):
                hurried = question(1.0, client=client, received_ns=clock.now, deadline_ns=clock.now + SECOND)
                tasks.append(asyncio.create_task(policy.batcher.ask(hurried)))
            await asyncio.sleep(0)
            clock.now += SECOND // 4
            runtime.permitted.release()
            await asyncio.to_thread(runtime.wait_until_entered)
            if patient.done():
                break
        runtime.permitted.release(200)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert patient.done()
        await patient
        await policy.close()

    asyncio.run(asked_for_ever())
    assert runtime.batches.index([7.0]) < 60


@pytest.mark.parametrize("sessions", [1, batcher_module.CROWD])
def test_short_questions_wait_neither_for_a_long_one_that_is_computed_nor_for_one_that_waits(runtime, sessions):
    policy = ServedPolicy(runtime, inline_below_s=0.0025, clock=FakeClock())
    policy.batcher.sessions = sessions

    async def short_beside_long():
        runtime.armed = True
        rows, asking = np.zeros((64, 3)), Asking(received_ns=0)
        long = [asyncio.create_task(policy.infer(rows, Detail.NONE, asking))]
        await asyncio.to_thread(runtime.wait_until_entered)
        long.append(asyncio.create_task(policy.infer(rows, Detail.NONE, asking)))
        await asyncio.sleep(0)
        runtime.armed = False
        for value in (1, 2):
            await policy.batcher.ask(question(value))
        assert not any(task.done() for task in long)
        runtime.permitted.release()
        await asyncio.gather(*long)
        await policy.close()

    asyncio.run(short_beside_long())
    assert runtime.batches[:2] == [[1], [2]]


def test_beside_promises_nothing_is_joined_for_longer_than_a_promised_decision_was_told_to_wait(runtime, monkeypatch):
    """Of 2 ms for the first row and 0.1 ms for each further one, 2.5 ms hold 6 rows and less than 2.5 ms five."""
    monkeypatch.setattr(batcher_module, "LONGEST_BESIDE_PROMISES_S", 0.0025)
    policy = ServedPolicy(runtime, inline_below_s=0.00205, clock=FakeClock())
    assert policy.longest_s() == 0.0025
    policy.batcher.sessions = batcher_module.CROWD

    async def together(promises):
        policy.batcher.promises = promises
        runtime.batches.clear()
        await asyncio.gather(*(policy.batcher.ask(question(n)) for n in range(8)))
        return [len(batch) for batch in runtime.batches]

    async def both():
        assert await together(0) == [8]
        assert max(await together(1)) == 5
        await policy.close()

    asyncio.run(both())


def test_a_selection_that_is_computed_in_the_thread_may_wait_for_all_that_is(runtime):
    policy = ServedPolicy(runtime, inline_below_s=0.003, clock=FakeClock())
    assert policy.longest_s() < batcher_module.LONGEST_S
    assert policy.longest_s(Selection(rule=Rule.BEST_CVAR, candidates=64)) == batcher_module.LONGEST_S


def test_nobody_with_a_promise_waits_for_the_rows_of_somebody_without(runtime):
    promised = [question(n, promised=True) for n in (1, 2)]
    others = [question(n) for n in (3, 4)]
    asyncio.run(while_one_computes(slow(runtime, FakeClock()), runtime, *others, *promised))
    assert runtime.batches[1:] == [[1, 2], [3, 4]]


def test_an_unloaded_policy_answers_all_parts_of_what_was_begun(runtime, monkeypatch):
    monkeypatch.setattr(batcher_module, "LONGEST_S", 0.0022)  # two rows
    policy = slow(runtime, FakeClock())
    asking = Asking(received_ns=0)
    observation = policy.checked_observation(OBSERVATION)

    async def unload():
        runtime.armed = True
        rows = asyncio.create_task(policy.infer(np.zeros((6, 3)), Detail.NONE, asking))
        best = asyncio.create_task(
            policy.decide(observation, Detail.NONE, asking, selection=Selection(rule=Rule.BEST_MEAN, candidates=8))
        )
        await asyncio.to_thread(runtime.wait_until_entered)
        closing = asyncio.create_task(policy.close())
        await asyncio.sleep(0)
        for late in (policy.infer(np.zeros((2, 3)), Detail.NONE, asking), policy.batcher.ask(question(1))):
            with pytest.raises(NotReadyError, match="was unloaded"):
                await late
        runtime.permitted.release(9)
        answered, decision = await asyncio.gather(rows, best)
        assert answered.outputs["action"].shape == (6, 2)
        assert decision.selected is not None
        await closing

    asyncio.run(unload())


def test_a_decision_that_is_answered_was_begun_before_its_deadline(runtime):
    """Whatever waits for whatever: a clock that every computation moves on, and deadlines around what it takes."""
    clock, random = FakeClock(), np.random.default_rng(0)
    original, began = runtime.rows, {}

    def rows(observations, detail):
        for value in observations[:, 0].tolist():
            began[value] = clock.now
        clock.now += int(1e9 * runtime.cost_s(len(observations)))
        return original(observations, detail)

    runtime.rows = rows
    expired = 0
    for inline_below_s in (0.0, 0.0025, 1.0):
        policy = ServedPolicy(runtime, inline_below_s=inline_below_s, clock=clock)
        policy.batcher.sessions = batcher_module.CROWD

        async def flood(policy=policy):
            questions = [
                question(float(n), client=str(n % 5), received_ns=clock.now, deadline_ns=clock.now + int(budget))
                for n, budget in enumerate(random.uniform(0, 6 * MS, 30))
            ]
            began.clear()
            answers = await asyncio.gather(*map(policy.batcher.ask, questions), return_exceptions=True)
            await policy.close()
            return list(zip(questions, answers, strict=True))

        for asked, answer in asyncio.run(flood()):
            value = float(asked.observations[0, 0])
            if isinstance(answer, ExpiredError):
                assert value not in began
                expired += 1
            else:
                assert began[value] < asked.deadline_ns
                assert began[value] == asked.received_ns + answer.queue_ns
    assert expired


def test_decisions_that_were_computed_together_count_their_inference_once(runtime):
    """Else joining would make the wire look free, and more would be promised than can be kept."""
    used = [0.0]
    admission = Admission(processor_s=lambda: used[0])
    clock = FakeClock()
    policy = slow(runtime, clock)
    original = runtime.rows

    def rows(observations, detail):
        clock.now += 8 * MS
        used[0] += 0.008
        return original(observations, detail)

    runtime.rows = rows
    assert LEAST_DECISIONS % 8 == 0
    for _ in range(LEAST_DECISIONS // 8 + 1):
        for answer in asyncio.run(while_one_computes(policy, runtime, *map(question, range(8)))):
            admission.decided(answer.own_ns)
            used[0] += 0.0003
        policy = slow(runtime, clock)
        used[0] -= 0.008  # of the one that was computed meanwhile
    assert admission.wire_s == pytest.approx(0.0003)
    assert WIRE_RANGE_S[0] < 0.0003


def test_the_slowest_rate_may_be_promised_without_a_latency():
    assert (
        Admission().grant(rate_hz=0.01, latency_ms=0, cost_s=0.0001, longest_s=0.001, policy="reacher").latency_ms
        == 60_000
    )


def test_a_gain_beyond_float32_is_told_all_the_same():
    assert pick(Rule.BEST_MEAN, np.float32([-3e38, 3e38])).gain == pytest.approx(6e38)


def test_one_client_on_a_unix_socket_does_not_use_up_what_another_may_have_waiting(gated, monkeypatch, tmp_path):
    monkeypatch.setattr(waiting_line, "WAITING_PER_CLIENT", 2)
    core = Core([ServedPolicy(gated, inline_below_s=0.0)])
    with Running(core, grpc=f"unix:{tmp_path}/p") as running, open_channel(running.grpc) as other:
        gated.armed = True
        first = running.stub.Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
        gated.wait_until_entered()
        with open_channel(running.grpc) as greedy:
            many = [
                PolicyServiceStub(greedy).Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
                for _ in range(3)
            ]
            eventually(lambda: any(call.done() for call in many), "one is refused")
            one = PolicyServiceStub(other).Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
            eventually(lambda: one.done() or running.metric("dst_queue_depth", policy="reacher") == 3, "three wait")
            gated.armed = False
            gated.permitted.release()
            assert one.result().decision.action
            codes = sorted(call.code().name for call in many)
        assert codes == ["OK", "OK", "RESOURCE_EXHAUSTED"]
        assert first.result().decision.action


def test_cancelled_calls_leave_nothing_in_the_queue(gated):
    with Running(Core([ServedPolicy(gated, inline_below_s=0.0)])) as running:
        gated.armed = True
        first = running.stub.Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S)
        gated.wait_until_entered()
        waiting = [running.stub.Act.future(pb.ActRequest(observation=OBSERVATION), timeout=PATIENCE_S) for _ in "abc"]
        eventually(lambda: running.metric("dst_queue_depth", policy="reacher") == 3, "three wait")
        for call in waiting:
            call.cancel()
        eventually(lambda: running.metric("dst_queue_depth", policy="reacher") == 0, "none waits")
        gated.permitted.release()
        first.result()
        assert not gated.entered.acquire(blocking=False), "a cancelled call was computed"


def refusal(call):
    with pytest.raises(grpc.RpcError) as refused:
        call()
    return refused.value.code(), refused.value.details()


def test_a_vector_that_is_much_too_long_is_refused_before_it_is_converted(running, monkeypatch):
    """A message of the largest size takes longer to convert than other robots should wait."""
    converted = []
    original = np.asarray
    monkeypatch.setattr(
        np,
        "asarray",
        lambda values, *args, **kwargs: converted.append(len(values)) or original(values, *args, **kwargs),
    )
    many = [0.0] * 200_000
    requests = (
        lambda: running.stub.Act(pb.ActRequest(observation=many), timeout=PATIENCE_S),
        lambda: running.stub.Assess(pb.AssessRequest(observation=OBSERVATION, candidates=many), timeout=PATIENCE_S),
    )
    for request, message in zip(requests, ("got (200000,)", f"at most {MAX_ROWS} rows, got 200000"), strict=True):
        code, details = refusal(request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message in details
    assert max(converted, default=0) < len(many)
