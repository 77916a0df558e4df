"""Both clients against the real server: assessments, the risk dial, promises."""

import time

import numpy as np
import pytest

from protos import policy_pb2 as pb
from sim_bridge.control_session import Outcome
from sim_bridge.errors import RequestRefusedError, ServerOverloadedError
from tests.integration.conftest import ServerProcess

OBSERVATION = np.array([0.1, -0.2, 0.3])


@pytest.fixture(scope="module")
def address(bundle):
    server = ServerProcess(bundle)
    yield server.grpc
    assert server.stop() == 0


@pytest.fixture
def client(address, connect):
    with connect(address) as client:
        yield client


def decide(session, tick):
    return session.decide(tick=tick, observation=OBSERVATION, deadline_ns=time.monotonic_ns() + 30_000_000_000)


def test_law_of_the_decided_action_is_the_decisions_own(client):
    decision = client.act(OBSERVATION).decision
    candidates = np.array([decision.action, np.zeros(2), [-1.0, 0.4]])
    laws = [each.summary for each in client.assess(OBSERVATION, candidates).assessments]
    assert len(laws) == 3
    np.testing.assert_allclose(laws[0].return_mean, decision.summary.return_mean, rtol=1e-5)
    np.testing.assert_allclose(laws[0].gradient_mean, decision.summary.gradient_mean, rtol=1e-4)
    assert len({law.return_mean for law in laws}) == 3


@pytest.mark.parametrize(("rule", "score"), [(pb.RULE_BEST_MEAN, "return_mean"), (pb.RULE_BEST_CVAR, "return_cvar")])
def test_selection_picks_what_gains_and_says_how_much(client, rule, score):
    selection = pb.Selection(rule=rule, candidates=32, spread=0.5)
    actor = client.act(OBSERVATION).decision
    with client.control(selection=selection) as session:
        picked = decide(session, 1).decision.decision
    assert (picked.selected.rule, picked.selected.candidates) == (rule, 32)
    assert picked.selected.index > 0
    assert list(picked.action) != list(actor.action)
    gain = getattr(picked.summary, score) - getattr(actor.summary, score)
    assert gain == pytest.approx(picked.selected.gain, rel=1e-3)
    assert gain > 0
    assert client.act(OBSERVATION, selection=selection).decision == picked


def test_promise_that_can_be_kept_is_granted(client):
    with client.control(rate_hz=10.0, latency_ms=1000.0) as session:
        assert (session.promise.rate_hz, session.promise.latency_ms) == (10.0, 1000.0)
        assert decide(session, 1).outcome is Outcome.OK


def test_rate_alone_is_promised_within_its_period(client):
    with client.control(rate_hz=40.0) as session:
        assert (session.promise.rate_hz, session.promise.latency_ms) == (40.0, 25.0)


def test_promise_that_cannot_be_kept_is_refused_with_what_to_do(client):
    with pytest.raises(ServerOverloadedError, match=r"or lower rate_hz, now 1000, raise latency_ms, now 0.02, or"):
        client.control(rate_hz=1000.0, latency_ms=0.02)


@pytest.mark.parametrize(
    ("request_it", "reason"),
    [
        (lambda client: client.act(OBSERVATION[:2]), "temperature"),
        (lambda client: client.act(OBSERVATION, contract="x"), "contract"),
        (lambda client: client.act(OBSERVATION, selection=pb.Selection(rule=1, candidates=1)), "candidates"),
        (lambda client: client.assess(OBSERVATION, np.full((1, 2), 9.0)), "shoulder"),
        (lambda client: client.assess(OBSERVATION, np.zeros((1, 3))), "candidates"),
        (lambda client: client.control(rate_hz=-1.0, latency_ms=5.0), "rate_hz"),
        (lambda client: client.control(latency_ms=5.0), "rate_hz"),
        (lambda client: client.act(np.zeros(300_000)), "larger than max"),
    ],
)
def test_what_does_not_fit_is_refused_in_the_servers_words(client, request_it, reason):
    with pytest.raises(RequestRefusedError, match=reason) as refusal:
        request_it(client)
    assert not isinstance(refusal.value, ServerOverloadedError)
