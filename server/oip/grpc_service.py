"""The protocol over gRPC."""
# ruff: noqa: ARG002, N802 - names and arguments of methods are the protocol's

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict

from google.protobuf.message import DecodeError

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from server.core import Core
from server.errors import InvalidInputError, ServingError, ShuttingDownError
from server.grpc_calls import Context, abort, asking_of
from server.oip.inference_service import InferenceService
from server.oip.messages import InferReply, InferRequest, Parameter, check_tensor_parameters, timeout_ns
from server.oip.tensors import DATATYPE, SentTensor, raw

STREAM_IN_FLIGHT = 16
"""Requests of one stream that are read before the first of them is answered; the rest wait in the client."""


class OpenInferenceService(open_inference_pb2_grpc.GRPCInferenceServiceServicer):
    """Decodes, asks, encodes, and maps errors."""

    def __init__(self, service: InferenceService, core: Core) -> None:
        self._service = service
        self._core = core
        self._streams: set[asyncio.Task[None]] = set()

    async def ServerLive(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """The process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """The whole server answers, for one model at least."""
        return pb.ServerReadyResponse(ready=self._service.ready())

    async def ModelReady(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """A model is loaded."""
        return pb.ModelReadyResponse(ready=self._service.model_ready(request.name, request.version))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """The server itself."""
        return pb.ServerMetadataResponse(**asdict(self._service.metadata()))

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """A model's tensors."""
        try:
            return pb.ModelMetadataResponse(**asdict(self._service.model_metadata(request.name, request.version)))
        except ServingError as error:
            await abort(context, error)

    async def ModelConfig(self, request: pb.ModelConfigRequest, context: Context) -> pb.ModelConfigResponse:
        """A model's configuration."""
        try:
            config = self._service.model_config(request.name, request.version)
        except ServingError as error:
            await abort(context, error)
        return pb.ModelConfigResponse(config=pb.ModelConfig(**asdict(config)))

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """One inference."""
        try:
            return await self._infer(request, context)
        except ServingError as error:
            await abort(context, error)

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: Context
    ) -> AsyncIterator[pb.ModelStreamInferResponse]:
        """One response per request, in their order; a request that fails ends nothing but itself, a message that is none the stream."""
        waiting: asyncio.Queue[asyncio.Task[pb.ModelStreamInferResponse] | None] = asyncio.Queue()
        room = asyncio.Semaphore(STREAM_IN_FLIGHT)

        async def receive() -> None:
            try:
                async for request in request_iterator:
                    await room.acquire()
                    waiting.put_nowait(asyncio.create_task(self._streamed(request, context)))
            finally:
                waiting.put_nowait(None)

        receiving = asyncio.create_task(receive())
        self._streams.add(receiving)
        answering: asyncio.Task[pb.ModelStreamInferResponse] | None = None
        try:
            while (answering := await waiting.get()) is not None:
                yield await answering
                room.release()
        finally:
            self._streams.discard(receiving)
            receiving.cancel()
            left = [answering, *(waiting.get_nowait() for _ in range(waiting.qsize()))]
            for task in left:
                if task is not None:
                    task.cancel()
        if not self._core.accepting:
            await abort(context, ShuttingDownError("server is shutting down"))
        try:
            await receiving
        except DecodeError:
            await abort(
                context, InvalidInputError("a message of the stream is no ModelInferRequest; open another stream")
            )

    def close_streams(self) -> None:
        """Answers what each stream has received, then ends it with UNAVAILABLE."""
        for receiving in self._streams:
            receiving.cancel()

    async def _streamed(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelStreamInferResponse:
        try:
            response = await self._infer(request, context)
        except ServingError as error:
            # The id tells the client which request it was.
            failed = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
            return pb.ModelStreamInferResponse(error_message=str(error), infer_response=failed)
        response.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=response)

    async def _infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        return await self._service.infer(
            request.model_name,
            request.model_version,
            decode=lambda: decoded(request),
            encode=encoded,
            asking=asking_of(context, self._core),
        )

    async def ModelStatistics(self, request: pb.ModelStatisticsRequest, context: Context) -> pb.ModelStatisticsResponse:
        """Counts and times of one model or of all."""
        try:
            statistics = await self._service.statistics(request.name, request.version)
        except ServingError as error:
            await abort(context, error)
        return pb.ModelStatisticsResponse(**asdict(statistics))

    async def RepositoryIndex(self, request: pb.RepositoryIndexRequest, context: Context) -> pb.RepositoryIndexResponse:
        """The models of the repository."""
        try:
            models = self._service.index(request.repository_name, ready=request.ready)
        except ServingError as error:
            await abort(context, error)
        return pb.RepositoryIndexResponse(
            models=[pb.RepositoryIndexResponse.ModelIndex(**asdict(model)) for model in models]
        )

    async def RepositoryModelLoad(
        self, request: pb.RepositoryModelLoadRequest, context: Context
    ) -> pb.RepositoryModelLoadResponse:
        """Loads a model again."""
        try:
            await self._service.load(request.repository_name, request.model_name, request.parameters)
        except ServingError as error:
            await abort(context, error)
        return pb.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: pb.RepositoryModelUnloadRequest, context: Context
    ) -> pb.RepositoryModelUnloadResponse:
        """Serves a model no more."""
        try:
            await self._service.unload(request.repository_name, request.model_name, request.parameters)
        except ServingError as error:
            await abort(context, error)
        return pb.RepositoryModelUnloadResponse()


def decoded(request: pb.ModelInferRequest) -> InferRequest:
    """A request without its encoding.

    Raises:
        InvalidInputError: a parameter is refused, or contents are neither all raw nor all typed float32.
    """
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise InvalidInputError(
            f"raw_input_contents must hold one entry for each of {len(request.inputs)} inputs, got {len(raws)}; "
            "send all inputs raw or all typed"
        )
    for output in request.outputs:
        check_tensor_parameters(output.name, output.parameters)
    return InferRequest(
        id=request.id,
        timeout_ns=timeout_ns(_parameters(request.parameters)),
        inputs=tuple(_sent(tensor, raws[index] if raws else None) for index, tensor in enumerate(request.inputs)),
        outputs=tuple(output.name for output in request.outputs),
    )


def _sent(tensor: pb.ModelInferRequest.InferInputTensor, content: bytes | None) -> SentTensor:
    check_tensor_parameters(tensor.name, tensor.parameters)
    typed = [field.name for field, _ in tensor.contents.ListFields()]
    if content is not None and typed:
        raise InvalidInputError("an input must be sent in raw_input_contents or in contents, got both; leave one out")
    if content is None and typed not in ([], ["fp32_contents"]):
        raise InvalidInputError(f"contents of an {DATATYPE} input must be fp32_contents, got {', '.join(typed)}")
    return SentTensor(
        name=tensor.name,
        datatype=tensor.datatype,
        shape=tensor.shape,
        content=list(tensor.contents.fp32_contents) if content is None else content,
    )


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Parameter]:
    """Their values; one without a value reads as an empty text, which no parameter takes."""
    values: dict[str, Parameter] = {}
    for name, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        values[name] = "" if choice is None else getattr(parameter, choice)
    return values


def encoded(reply: InferReply) -> pb.ModelInferResponse:
    """A reply with raw contents: clients read nothing else."""
    return pb.ModelInferResponse(
        model_name=reply.model_name,
        model_version=reply.model_version,
        id=reply.id,
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(name=name, datatype=DATATYPE, shape=values.shape)
            for name, values in reply.outputs.items()
        ],
        raw_output_contents=[raw(values) for values in reply.outputs.values()],
    )
