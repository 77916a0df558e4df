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
    NotReadyError,
    OverloadedError,
    ServingError,
    ShuttingDownError,
    UnknownPolicyError,
)
from server.http_messages import ErrorReply
from server.http_native import native_routes
from server.live import Live
from server.oip.http_routes import create_router
from server.oip.inference_service import InferenceService
from server.request_body import told
from server.security_headers import SecurityHeaders
from server.telemetry import Telemetry

STATIC = Path(__file__).parent / "dashboard" / "static"
STATUS_CODES: dict[type[ServingError], int] = {
    InvalidInputError: 422,
    UnknownPolicyError: 404,
    ExpiredError: 504,
    NotReadyError: 503,
    OverloadedError: 503,
    ShuttingDownError: 503,
    InferenceError: 500,
}


def create_app(
    core: Core, live: Live, telemetry: Telemetry, open_inference: InferenceService, *, max_body_bytes: int
) -> FastAPI:
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
        return JSONResponse({"error": told(error.errors())}, 422)

    @app.exception_handler(HTTPException)
    async def http_error(_request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    @app.get("/readyz", responses={503: {"model": ErrorReply}})
    async def readyz() -> dict[str, str]:
        """At least one policy is loaded, all processes answer, and new requests are accepted."""
        core.check_ready()
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(await telemetry.scraped(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(native_routes(core, telemetry))
    app.include_router(create_router(open_inference, core, max_body_bytes=max_body_bytes))

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
