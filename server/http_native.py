"""The native operations as JSON: policies and their contracts, one decision, the laws of candidates."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request

from server.core import Core
from server.errors import OverloadedError, ServingError
from server.http_messages import (
    ActBody,
    ActReply,
    AssessBody,
    AssessReply,
    ErrorReply,
    PolicyReply,
    act_reply,
    assess_reply,
    candidate_rows,
    numbers,
    policy_reply,
)
from server.question import Answered
from server.selection import ACTOR
from server.served_policy import Asking, Decision
from server.telemetry import Method, Telemetry

ERRORS = {
    400: "The body is not JSON.",
    404: "No policy has that name.",
    413: "The body is larger than the server accepts.",
    422: "The observation or an option does not fit the contract.",
    500: "The policy produced no usable output.",
    503: "Overloaded, not ready, or shutting down; Retry-After tells when to ask again.",
    504: "The timeout passed before the observation was computed.",
}


def native_routes(core: Core, telemetry: Telemetry) -> APIRouter:
    """What `/v1/policies` offers."""
    router = APIRouter()
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorReply, "description": text} for status, text in ERRORS.items()
    }

    @router.get("/v1/policies")
    async def policies() -> list[PolicyReply]:
        """The loaded policies."""
        return [policy_reply(policy) for policy in core.policies.values()]

    @router.get("/v1/policies/{name}", responses={404: {"model": ErrorReply}})
    async def describe(name: str) -> PolicyReply:
        """One policy and its contract."""
        return policy_reply(core.policy(name))

    def asking_of(request: Request, timeout_ms: float | None) -> Asking:
        received_ns = core.clock()
        deadline_ns = None if timeout_ms is None else received_ns + int(timeout_ms * 1e6)
        client = "" if request.client is None else f"http:{request.client.host}:{request.client.port}"
        return Asking(received_ns=received_ns, deadline_ns=deadline_ns, client=client)

    def count(name: str, method: Method, asking: Asking, answer: Decision | Answered) -> None:
        core.admission.decided(answer.own_ns)
        telemetry.decided(
            name,
            method,
            queue_ns=answer.queue_ns,
            inference_ns=answer.inference_ns,
            total_ns=core.clock() - asking.received_ns,
        )

    def count_refusal(name: str, method: Method, error: ServingError) -> None:
        telemetry.refused(name, method, error.counted_as)
        if isinstance(error, OverloadedError):
            telemetry.shed(name, "queue")

    @router.post("/v1/policies/{name}/act", responses=responses)
    async def act(name: str, body: ActBody, request: Request) -> ActReply:
        """One observation, one decision."""
        asking = asking_of(request, body.timeout_ms)
        policy = core.policy(name)
        try:
            observation = policy.checked_observation(numbers(body.observation, policy))
            selection = ACTOR if body.selection is None else body.selection.chosen(policy)
            decision = await policy.decide(observation, body.detail, asking, selection=selection)
        except ServingError as error:
            count_refusal(name, "http", error)
            raise
        signals = decision.signals
        if signals is not None:
            telemetry.uncertainty(name, signals)
        count(name, "http", asking, decision)
        return act_reply(policy, decision)

    @router.post("/v1/policies/{name}/assess", responses=responses)
    async def assess(name: str, body: AssessBody, request: Request) -> AssessReply:
        """One observation, the law of the return and of its action gradient for every candidate action."""
        asking = asking_of(request, body.timeout_ms)
        policy = core.policy(name)
        try:
            observation = policy.checked_observation(numbers(body.observation, policy))
            candidates = candidate_rows(body.candidates, policy)
            answered = await policy.assess(observation[np.newaxis], candidates[np.newaxis], body.detail, asking)
        except ServingError as error:
            count_refusal(name, "assess", error)
            raise
        count(name, "assess", asking, answered)
        return assess_reply(policy, answered, body.detail)

    return router
