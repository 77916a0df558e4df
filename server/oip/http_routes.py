"""The protocol over HTTP; errors become `{"error": ...}` where the application maps them."""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, StrictBool, WithJsonSchema

from server.core import Core
from server.http_messages import ErrorReply
from server.oip.http_bodies import HEADER_LENGTH, NONE, Exchange, InferBody, InferBodyReply, parsed
from server.oip.inference_service import InferenceService
from server.oip.messages import ModelConfig, ModelIndex, ModelMetadata, ModelStatisticsReply, ServerMetadata
from server.request_body import Few, RequestBody
from server.served_policy import Asking

Route = TypeVar("Route", bound=Callable[..., object])
MODEL = "/v2/models/{model}"
VERSION = f"{MODEL}/versions/{{version}}"
VERSION_PARAMETER = {"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}
ERRORS = {
    404: "Nothing has that name or version.",
    413: "The body is larger than the server accepts.",
    422: "The request does not fit the model.",
    500: "The policy produced no usable output.",
    503: "Overloaded, not loaded, or shutting down.",
    504: "The timeout passed before the request was computed.",
}


class IndexBody(RequestBody):
    """Which models to list."""

    ready: StrictBool = False


class LoadBody(RequestBody):
    """A policy is loaded as its bundle says: what clients may want to override is refused."""

    parameters: Annotated[dict[str, Any], Few, NONE, WithJsonSchema({"type": "object", "additionalProperties": False})]


class UnloadBody(RequestBody):
    """Clients always send `unload_dependents`; no policy depends on another."""

    parameters: Annotated[dict[Literal["unload_dependents"], StrictBool], Few, NONE]


def create_router(service: InferenceService, core: Core, *, max_body_bytes: int) -> APIRouter:
    """The routes of the protocol."""
    router = APIRouter(tags=["Open Inference Protocol"])

    def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: {"model": ErrorReply, "description": ERRORS[status]} for status in statuses}

    def of_model(path: str, *statuses: int) -> Callable[[Route], Route]:
        """GET of a model, and the same of one version of it."""

        def register(route: Route) -> Route:
            router.get(MODEL + path, responses=errors(*statuses))(route)
            router.get(VERSION + path, responses=errors(*statuses), openapi_extra={"parameters": [VERSION_PARAMETER]})(
                route
            )
            return route

        return register

    def version_of(request: Request) -> str:
        return str(request.path_params.get("version", ""))

    @router.get("/v2")
    async def server_metadata() -> ServerMetadata:
        """The server and the extensions it serves."""
        return service.metadata()

    @router.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        """The process answers."""
        return {"live": True}

    @router.get("/v2/health/ready", responses=errors(503))
    async def ready() -> dict[str, bool]:
        """The whole server answers, for one model at least."""
        core.check_ready()
        return {"ready": True}

    @router.get("/v2/models/stats")
    async def all_statistics() -> ModelStatisticsReply:
        """What all loaded models have done since they were loaded."""
        return await service.statistics("", "")

    @of_model("", 404, 503)
    async def model_metadata(model: str, request: Request) -> ModelMetadata:
        """A model's tensors."""
        return service.model_metadata(model, version_of(request))

    @of_model("/ready", 404, 503)
    async def model_ready(model: str, request: Request) -> dict[str, bool]:
        """A model is loaded."""
        service.model(model, version_of(request))
        return {"ready": True}

    @of_model("/config", 404, 503)
    async def model_config(model: str, request: Request) -> ModelConfig:
        """A model's configuration."""
        return service.model_config(model, version_of(request))

    @of_model("/stats", 404, 503)
    async def statistics(model: str, request: Request) -> ModelStatisticsReply:
        """What a model has done since it was loaded."""
        return await service.statistics(model, version_of(request))

    infer_body = _body(InferBody)
    infer_body["requestBody"]["required"] = True
    infer_replies: dict[int | str, dict[str, Any]] = {200: {"model": InferBodyReply}, **errors(*ERRORS)}

    @router.post(
        VERSION + "/infer", responses=infer_replies, openapi_extra=infer_body | {"parameters": [VERSION_PARAMETER]}
    )
    @router.post(MODEL + "/infer", responses=infer_replies, openapi_extra=infer_body)
    async def infer(model: str, request: Request) -> Response:
        """One inference; tensors may follow the JSON as the binary tensor extension says."""
        client = "" if request.client is None else f"http:{request.client.host}:{request.client.port}"
        asking = Asking(received_ns=core.clock(), client=client)
        exchange = Exchange(
            await request.body(),
            header_length=request.headers.get(HEADER_LENGTH),
            encoding=request.headers.get("Content-Encoding"),
            max_bytes=max_body_bytes,
        )
        body, length = await service.infer(
            model, version_of(request), decode=exchange.decoded, encode=exchange.encoded, asking=asking
        )
        if length is None:
            return Response(body, media_type="application/json")
        return Response(body, media_type="application/octet-stream", headers={HEADER_LENGTH: str(length)})

    @router.post("/v2/repository/index", responses=errors(413, 422), openapi_extra=_body(IndexBody))
    async def repository_index(request: Request) -> tuple[ModelIndex, ...]:
        """The models of the repository, loaded or not."""
        return service.index("", ready=parsed(await request.body() or b"{}", IndexBody).ready)

    @router.post(
        "/v2/repository/models/{model}/load",
        responses=errors(404, 413, 422, 503),
        response_class=Response,
        openapi_extra=_body(LoadBody),
    )
    async def load(model: str, request: Request) -> Response:
        """Loads a model again from its directory; the version before serves until then, and on where this fails."""
        await service.load("", model, parsed(await request.body() or b"{}", LoadBody).parameters)
        return Response()

    @router.post(
        "/v2/repository/models/{model}/unload",
        responses=errors(404, 413, 422, 503),
        response_class=Response,
        openapi_extra=_body(UnloadBody),
    )
    async def unload(model: str, request: Request) -> Response:
        """Serves a model no more."""
        parsed(await request.body() or b"{}", UnloadBody)
        await service.unload("", model, {})
        return Response()

    return router


def _body(model: type[BaseModel]) -> dict[str, Any]:
    """How a body is described that clients send without saying that it is JSON, so that it is read by hand."""
    return {"requestBody": {"content": {"application/json": {"schema": _inlined(model)}}}}


def _inlined(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a body that is read by hand, with nothing to refer to: its parts are no components of the API."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def inline(node: object) -> object:
        if isinstance(node, list):
            return [inline(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return inline(parts[node["$ref"].rpartition("/")[2]])
        return {key: inline(value) for key, value in node.items()}

    return {key: inline(value) for key, value in schema.items()}
