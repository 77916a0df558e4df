import asyncio
import dataclasses
import math

import numpy as np
import pytest

from server.errors import InvalidInputError
from server.runtime import Detail, Runtime
from server.selection import Candidates, Rule, Selection, pick
from server.served_policy import Asking, ServedPolicy

LOW, HIGH = np.float32([-1.0, 0.0]), np.float32([3.0, 0.5])


@pytest.fixture(scope="module")
def policy(loaded):
    return ServedPolicy(Runtime(loaded, "cpu"))


def decide(policy, selection, detail=Detail.SUMMARY, values=(0.1, -0.2, 0.3)):
    observation = policy.checked_observation(values)
    return asyncio.run(policy.decide(observation, detail, Asking(received_ns=0), selection=selection))


def test_candidates_lie_within_the_limits_around_the_action_which_comes_first():
    action = np.float32([0.5, 0.1])
    around = Candidates(LOW, HIGH, seed=0).around(action, Selection(candidates=256, spread=0.01))
    np.testing.assert_array_equal(around[0], action)
    spread = (around[1:] - action).std(0) / ((HIGH - LOW) / 2)
    assert spread == pytest.approx([0.01, 0.01], rel=0.15)
    wide = Candidates(LOW, HIGH, seed=0).around(action, Selection(candidates=256, spread=1.0))
    assert (wide >= LOW).all()
    assert (wide <= HIGH).all()


def test_the_same_seed_gives_the_same_candidates():
    action, selection = np.float32([0.5, 0.1]), Selection()
    first, again, other = (Candidates(LOW, HIGH, seed=seed).around(action, selection) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_best_candidate_is_picked_and_the_actor_where_none_is_better():
    assert pick(Rule.BEST_MEAN, np.float32([1.0, 3.0, 2.0])).index == 1
    assert pick(Rule.BEST_MEAN, np.float32([1.0, 1.0, 1.0])).index == 0
    assert pick(Rule.BEST_CVAR, np.float32([1.0, 3.0, 2.0])).gain == 2.0


@pytest.mark.parametrize(("rule", "score"), [(Rule.BEST_MEAN, "return_mean"), (Rule.BEST_CVAR, "return_cvar")])
def test_the_decision_is_the_candidate_with_the_best_served_law(policy, rule, score):
    selection = Selection(rule=rule, candidates=64, spread=0.3)
    decision = decide(policy, selection, Detail.SAMPLES)
    observations = policy.checked_observation([0.1, -0.2, 0.3])[None]
    actor = policy.runtime.infer(observations, Detail.NONE)[0][0]
    candidates = policy._candidates.around(actor, selection)
    laws = policy.runtime.assess(observations, candidates[None])
    best = int(laws[score][0].argmax())
    assert decision.selected.index == best
    np.testing.assert_array_equal(decision.action, candidates[best])
    np.testing.assert_array_equal(decision.samples.returns, laws["return_samples"][0, best])
    for name, value in dataclasses.asdict(decision.summary).items():
        np.testing.assert_array_equal(value, laws[name][0, best], err_msg=name)
    assert decision.selected.gain == pytest.approx(float(laws[score][0, best] - laws[score][0, 0]))


def test_detail_changes_what_is_told_and_not_what_is_picked(policy):
    selection = Selection(rule=Rule.BEST_CVAR)
    told = [decide(policy, selection, detail) for detail in Detail]
    assert len({(decision.selected, decision.action.tobytes()) for decision in told}) == 1
    assert [decision.summary is None for decision in told] == [True, False, False]


def test_the_actors_action_is_told_without_a_selection(policy):
    assert decide(policy, Selection()).selected is None


@pytest.mark.parametrize(
    ("field", "value"), [("candidates", 1), ("candidates", 257), ("spread", 0.0), ("spread", 1.5), ("spread", math.nan)]
)
def test_a_selection_that_means_nothing_names_the_field(field, value):
    with pytest.raises(InvalidInputError, match=f"selection.{field}"):
        Selection(**{field: value})


def test_an_action_without_limits_has_no_candidates():
    with pytest.raises(InvalidInputError, match="index 1 has none"):
        Candidates(np.float32([-1, -math.inf]), np.float32([1, math.inf]), seed=0).check()
