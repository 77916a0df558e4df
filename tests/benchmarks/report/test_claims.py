"""Every claim on results for which its verdict is known."""

import pytest

from benchmarks.report.claims import (
    Claim,
    advantage_grows_with_noise,
    advantage_grows_with_reward_locations,
    claims,
    claims_section,
    fewer_interactions,
    harm_without_sobolev_terms,
    lower_variance,
    max_sliced_adds_little,
)
from benchmarks.report.study import study_of
from tests.benchmarks.report.tables import made_run, results, seeds


def judged(claim, runs, *arguments) -> Claim:
    return claim(study_of(results(runs), reference="dst"), *arguments)


def reaching(step: int, *, variant: str, count: int = 3) -> list:
    """Runs that reach the level two evaluations after the step."""
    returns = {at: 10.0 if at >= step else 0.0 for at in range(0, 8500, 500)}
    return [made_run(returns, variant=variant, seed=seed) for seed in range(count)]


@pytest.mark.parametrize(
    ("runs", "verdict", "found"),
    [
        ([*reaching(1000, variant="dst"), *reaching(3000, variant="mage")], "held", "0.50 (0.50 to 0.50)"),
        ([*reaching(1000, variant="dst"), *reaching(9000, variant="mage")], "held", "below 0.25 (0.00 to 0.25)"),
        ([*reaching(3000, variant="dst"), *reaching(3000, variant="mage")], "not held", "1.00 (1.00 to 1.00)"),
        ([*reaching(9000, variant="dst"), *reaching(3000, variant="mage")], "not held", "above 2.00 (2.00 to ∞)"),
        ([*reaching(9000, variant="dst"), *reaching(9000, variant="mage")], "not tested", "reach the level"),
        ([*reaching(1000, variant="dst"), *reaching(3000, variant="iqn")], "not tested", "reach the level"),
        ([*reaching(1000, variant="dst", count=1), *reaching(3000, variant="mage")], "not tested", "one seed"),
        (
            [
                *reaching(1000, variant="dst"),
                *reaching(3000, variant="mage", count=2),
                *reaching(1000, variant="mage")[2:],
            ],
            "undecided",
            "0.50 (0.50 to 1.00)",
        ),
        (
            [
                *reaching(3000, variant="dst"),
                *reaching(4000, variant="mage", count=2),
                *reaching(5000, variant="mage")[2:],
            ],
            "undecided",
            "0.80 (0.67 to 0.80)",
        ),
    ],
)
def test_about_30_percent_fewer_interactions(runs, verdict: str, found: str) -> None:
    claim = judged(fewer_interactions, runs, "mage", "MAGE")
    assert (claim.verdict, found in claim.finding) == (verdict, True), claim


WIDE, NARROW = [0.0, 4.0, 8.0, 12.0, 16.0], [7.8, 7.9, 8.0, 8.1, 8.2]


@pytest.mark.parametrize(
    ("own", "peer", "verdict"),
    [
        (NARROW, WIDE, "held"),
        (WIDE, NARROW, "not held"),
        (WIDE, WIDE[::-1], "undecided"),
        (WIDE[:1], WIDE, "not tested"),
    ],
)
def test_lower_variance(own, peer, verdict: str) -> None:
    assert judged(lower_variance, [*seeds(own), *seeds(peer, variant="td3")]).verdict == verdict


def test_variance_must_be_lower_than_that_of_every_other_algorithm_but_not_of_its_own_changes() -> None:
    runs = [*seeds(NARROW), *seeds(WIDE, variant="td3"), *seeds([8.0] * 5, variant="dst, max-sliced")]
    assert judged(lower_variance, runs).verdict == "held"
    assert judged(lower_variance, [*runs, *seeds(NARROW, variant="tqc")]).verdict == "undecided"
    between = [7.0, 7.5, 8.0, 8.5, 9.0]
    runs = [*seeds(between), *seeds(WIDE, variant="td3"), *seeds(NARROW, variant="tqc")]
    assert judged(lower_variance, runs).verdict == "not held"


@pytest.mark.parametrize(
    ("without", "verdict"),
    [([5.0, 5.0, 6.0], "held"), ([10.0, 10.0, 10.1], "not held"), ([5.0, 10.0, 12.0], "undecided")],
)
def test_harm_without_sobolev_terms(without, verdict: str) -> None:
    runs = [*seeds([10.0, 10.0, 10.1]), *seeds(without, variant="dst, no Sobolev terms")]
    assert judged(harm_without_sobolev_terms, runs).verdict == verdict


@pytest.mark.parametrize(
    ("sliced", "verdict"),
    [
        ([10.0, 10.0, 10.1], "held"),
        ([5.0, 5.0, 6.0], "not held"),
        ([20.0, 21.0, 20.0], "not held"),
        ([8.0, 10.0, 12.0], "undecided"),
    ],
)
def test_max_sliced_adds_little(sliced, verdict: str) -> None:
    runs = [*seeds([10.0, 10.0, 10.1]), *seeds(sliced, variant="dst, max-sliced")]
    assert judged(max_sliced_adds_little, runs).verdict == verdict


def test_what_is_said_of_a_change_holds_whichever_of_the_two_is_the_reference() -> None:
    runs = [*seeds([10.0, 10.0, 10.1]), *seeds([5.0, 5.0, 6.0], variant="dst, max-sliced"), *seeds(WIDE, variant="td3")]
    plain, sliced = (study_of(results(runs), reference=name) for name in ("dst", "dst, max-sliced"))
    assert max_sliced_adds_little(plain) == max_sliced_adds_little(sliced)
    assert "against dst" not in lower_variance(sliced).finding


def led(lead: float, **where) -> list:
    """The reference leads two peers by these on average, in normalised scores."""
    steady = [10.0, 10.0, 10.0]
    return [
        *seeds(steady, **where),
        *seeds([10.0 * (1 - lead / 2)] * 3, variant="td3", **where),
        *seeds([10.0 * (1 - 3 * lead / 2)] * 3, variant="tqc", **where),
        *seeds([1.0] * 3, variant="dst, max-sliced", **where),  # no peer of its own
    ]


@pytest.mark.parametrize(
    ("undisturbed", "disturbed", "verdict", "found"),
    [(0.1, 0.3, "held", "0.20 (0.20 to 0.20)"), (0.3, 0.1, "not held", "-0.20"), (0.2, 0.2, "not held", "0.00")],
)
def test_advantage_grows_with_noise(undisturbed: float, disturbed: float, verdict: str, found: str) -> None:
    runs = [*led(undisturbed), *led(disturbed, perturbation="observation=0.2")]
    claim = judged(advantage_grows_with_noise, runs)
    assert (claim.verdict, found in claim.finding) == (verdict, True), claim


def test_noise_in_two_strengths_is_averaged_and_other_tasks_without_a_pair_do_not_count() -> None:
    runs = [*led(0.1), *led(0.2, perturbation="observation=0.1"), *led(0.5, perturbation="observation=0.2")]
    runs += led(0.6, environment="Hopper-v5", perturbation="observation=0.2")
    assert "0.25 (0.25 to 0.25) over 2 settings" in judged(advantage_grows_with_noise, runs).finding
    assert judged(advantage_grows_with_noise, led(0.1)).verdict == "not tested"


@pytest.mark.parametrize(
    ("leads", "verdict", "found"),
    [
        ({1: 0.1, 2: 0.2, 4: 0.3, 8: 0.4}, "held", "0.10 (0.10 to 0.10)"),
        ({1: 0.1, 8: 0.4}, "held", "0.10"),
        ({1: 0.4, 2: 0.4, 4: 0.1}, "not held", "-0.15"),
        ({4: 0.4}, "not tested", "two N"),
    ],
)
def test_advantage_grows_with_reward_locations(leads, verdict: str, found: str) -> None:
    runs = [run for n, lead in leads.items() for run in led(lead, environment=f"PointMass{n}-v0")]
    claim = judged(advantage_grows_with_reward_locations, [*runs, *led(0.6, environment="Hopper-v5")])
    assert (claim.verdict, found in claim.finding) == (verdict, True), claim


def test_all_claims_are_there_and_untested_ones_say_what_is_missing() -> None:
    made = study_of(results(seeds([1.0, 2.0, 3.0])), reference="dst")
    assert [claim.verdict for claim in claims(made)] == ["not tested"] * 7
    assert all(claim.finding for claim in claims(made))
    text = claims_section(made)
    assert all(claim.claim in text and claim.criterion in text for claim in claims(made))
