"""What every call begins with, on both wires: an id for the log, and a span where traces are asked for."""

import contextlib
import inspect
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeAlias, cast

import grpc
import grpc.aio
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import logs
from server.tracing import Call, Tracing

REQUEST_ID = "x-request-id"
UNTRACED = ("/grpc.health.", "/grpc.reflection.")


def request_id(headers: Mapping[str, str]) -> str:
    """The id that the client gave its call, where it is a plain word, else a new one."""
    given = headers.get(REQUEST_ID, "")
    return given if re.fullmatch(r"[A-Za-z0-9._:-]{1,64}", given) else secrets.token_hex(8)


Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Found: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class GrpcInterceptor(grpc.aio.ServerInterceptor):
    """Of gRPC calls. A stream costs nothing per message unless traces are asked for."""

    def __init__(self, tracing: Tracing | None) -> None:
        self._tracing = tracing

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Found]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Found:
        """Binds the id for the task that answers the call."""
        method = handler_call_details.method
        metadata = handler_call_details.invocation_metadata or ()
        headers = {key: value for key, value in metadata if isinstance(value, str)}
        logs.bind(request=request_id(headers))
        handler = await continuation(handler_call_details)
        if self._tracing is None or handler is None or method.startswith(UNTRACED):
            return handler
        return _traced(handler, self._tracing, method.removeprefix("/"), headers)


def _traced(handler: Handler, tracing: Tracing, name: str, headers: Mapping[str, str]) -> Handler:
    service, _, method = name.partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}
    coders = {"request_deserializer": handler.request_deserializer, "response_serializer": handler.response_serializer}
    # The stubs know synchronous servers alone.
    answer_one, answer_many = cast("Any", handler.unary_unary), cast("Any", handler.stream_stream)

    async def unary(request: object, context: Context) -> object:
        with tracing.call(name, headers, session=False, attributes=attributes) as call, _status(call, context):
            return await answer_one(request, context)

    async def stream(requests: object, context: Context) -> AsyncIterator[object]:
        with tracing.call(name, headers, session=True, attributes=attributes) as call, _status(call, context):
            async with contextlib.aclosing(answer_many(requests, context)) as answers:
                async for answer in answers:
                    yield answer

    async def session(requests: object, context: Context) -> None:
        with tracing.call(name, headers, session=True, attributes=attributes) as call, _status(call, context):
            await answer_many(requests, context)

    if answer_one is not None:
        return grpc.unary_unary_rpc_method_handler(cast("Any", unary), **coders)
    if answer_many is not None:
        own = stream if inspect.isasyncgenfunction(answer_many) else session
        return grpc.stream_stream_rpc_method_handler(cast("Any", own), **coders)
    return handler


@contextlib.contextmanager
def _status(call: Call, context: Context) -> Iterator[None]:
    try:
        yield
    finally:
        # Until something sets it, the code is None, or 0 as a plain number.
        code = context.code()
        call.describe(**{"rpc.grpc.status_code": code.value[0] if isinstance(code, grpc.StatusCode) else 0})


class HttpInterceptor:
    """Of HTTP requests; the id is in the reply too. Spans are of POST alone: what is read is not worth a trace."""

    def __init__(self, app: ASGIApp, tracing: Tracing | None) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        name = request_id(headers)
        logs.bind(request=name)
        status = 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = name
            await send(message)

        if self._tracing is None or scope["method"] != "POST":
            await self._app(scope, receive, sent)
            return
        attributes = {"http.request.method": scope["method"], "url.path": scope["path"]}
        with self._tracing.call("POST", headers, session=False, attributes=attributes) as call:
            try:
                await self._app(scope, receive, sent)
            finally:
                route = getattr(scope.get("route"), "path", "")
                call.describe(**{"http.route": route, "http.response.status_code": status})
                if status >= 500:
                    call.fail(f"HTTP {status}")
                call.span.update_name(f"POST {route}".strip())
