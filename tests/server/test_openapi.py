"""The HTTP interface against its own OpenAPI description, by Schemathesis: what it makes up must be answered as the description says."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

ENDLESS = "/v1/live"
"""Server-sent events: no client can wait for the whole of them."""


@pytest.mark.parametrize("policy", ["reacher", None])
@pytest.mark.parametrize("mode", GenerationMode)
def test_what_is_made_up_from_the_description_is_answered_as_it_says(running, mode, policy):
    schema = schemathesis.openapi.from_url(f"{running.http}/openapi.json").exclude(path=ENDLESS)
    tried = set()
    for operation in (found.ok() for found in schema.get_all_operations()):
        of_a_policy = "{name}" in operation.path and "/v1/" in operation.path
        if policy is not None and not of_a_policy:
            continue  # the very examples of the other case

        @settings(max_examples=15, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def answered(case):
            if policy is not None and "name" in case.path_parameters and "/v1/" in case.path:
                case.path_parameters["name"] = policy
            # How many numbers an observation has is the policy's to say, not the description's.
            case.call_and_validate(timeout=10, excluded_checks=[] if policy is None else [positive_data_acceptance])
            tried.add(case.operation.label)

        try:
            answered()
        except Unsatisfiable:  # an operation without parameters has nothing to get wrong
            assert mode is GenerationMode.NEGATIVE
    assert {"POST /v1/policies/{name}/act", "POST /v1/policies/{name}/assess"} <= tried
