"""Bounds the body of an HTTP request, in bytes and in time, before anything decodes it."""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_TIMEOUT_S = 10.0


class BodyLimit:
    """Refuses a body over the cap with 413 and one that does not arrive in time with 408."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes on requests whose body ends within the cap."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                while more and len(body) <= self._max_body_bytes:
                    message = await receive()
                    if message["type"] != "http.request":
                        return
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
        except TimeoutError:
            reply = JSONResponse({"error": f"the body must arrive within {BODY_TIMEOUT_S:.0f} s"}, 408)
            await reply(scope, receive, send)
            return
        if len(body) > self._max_body_bytes:
            reply = JSONResponse({"error": f"the body must have at most {self._max_body_bytes} bytes"}, 413)
            await reply(scope, receive, send)
            return
        whole: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

        async def replay() -> Message:
            return whole.pop() if whole else await receive()

        await self._app(scope, replay, send)
