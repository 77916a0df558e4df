"""HTTP: health, metrics, policies, one decision at a time, and the operator's page."""

import math
from collections.abc import AsyncIterator
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from server.body_limit import BodyLimit
from server.core import Core
from server.errors import (
    ExpiredError,
    InferenceError,
    InvalidInputError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
    UnknownPolicyError,
)
from server.http_messages import ActBody, ActReply, ErrorReply, PolicyReply, act_reply, numbers, policy_reply
from server.live import Live
from server.security_headers import SecurityHeaders
from server.telemetry import Status, Telemetry

STATIC = Path(__file__).parent / "dashboard" / "static"
STATUS_CODES: dict[type[ServingError], int] = {
    InvalidInputError: 422,
    UnknownPolicyError: 404,
    ExpiredError: 504,
    OverloadedError: 503,
    ShuttingDownError: 503,
    InferenceError: 500,
}
REFUSALS: dict[type[ServingError], Status] = {
    InvalidInputError: "rejected",
    ExpiredError: "expired",
    OverloadedError: "overloaded",
    InferenceError: "failed",
}


def create_app(core: Core, live: Live, telemetry: Telemetry, *, max_body_bytes: int) -> FastAPI:
    """The HTTP application over one core."""
    app = FastAPI(
        title="DST policy server",
        description="Actions of robot policies with their return and gradient distributions.",
        docs_url=None,  # its page would load scripts from another host
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_body_bytes=max_body_bytes)
    app.add_middleware(SecurityHeaders)

    @app.exception_handler(ServingError)
    async def refused(_request: Request, error: ServingError) -> JSONResponse:
        headers = {}
        if isinstance(error, OverloadedError):
            headers["Retry-After"] = str(math.ceil(error.retry_after_ms / 1000))
        return JSONResponse({"error": str(error)}, STATUS_CODES[type(error)], headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()[:8]]
        return JSONResponse({"error": "; ".join(problems)}, 422)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"model": ErrorReply}})
    async def readyz() -> dict[str, str]:
        """All policies are loaded and new requests are accepted."""
        if not core.accepting:
            raise ShuttingDownError("server is shutting down")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(telemetry.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/policies")
    async def policies() -> list[PolicyReply]:
        """The loaded policies."""
        return [policy_reply(policy) for policy in core.policies.values()]

    @app.get("/v1/policies/{name}", responses={404: {"model": ErrorReply}})
    async def describe(name: str) -> PolicyReply:
        """One policy and its contract."""
        return policy_reply(core.policy(name))

    act_errors = {
        400: "The body is not JSON.",
        404: "No policy has that name.",
        413: "The body is larger than the server accepts.",
        422: "The observation or an option does not fit the contract.",
        500: "The policy produced no usable action.",
        503: "Overloaded or shutting down.",
        504: "The timeout passed before the observation was computed.",
    }

    @app.post(
        "/v1/policies/{name}/act",
        responses={status: {"model": ErrorReply, "description": text} for status, text in act_errors.items()},
    )
    async def act(name: str, body: ActBody) -> ActReply:
        """One observation, one decision."""
        received_ns = core.clock()
        policy = core.policy(name)
        deadline_ns = None if body.timeout_ms is None else received_ns + int(body.timeout_ms * 1e6)
        try:
            observation = policy.checked_observation(numbers(body.observation, policy))
            decision = await policy.decide(observation, body.detail, received_ns=received_ns, deadline_ns=deadline_ns)
        except ServingError as error:
            telemetry.refused(name, "http", REFUSALS[type(error)])
            raise
        telemetry.decided(
            name,
            "http",
            queue_ns=decision.queue_ns,
            inference_ns=decision.inference_ns,
            total_ns=core.clock() - received_ns,
        )
        return act_reply(policy, decision)

    @app.get("/v1/live", response_class=StreamingResponse)
    async def live_events() -> StreamingResponse:
        """Server-sent events for the operator's page: the last minute of every robot, then what is new."""
        events = live.events()
        # The first event is made here, so that a refusal still has a status code.
        first = await anext(events)

        async def stream() -> AsyncIterator[bytes]:
            yield first
            async for event in events:
                yield event

        return StreamingResponse(stream(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app
