# /// script
# dependencies = ["mlserver"]
# [tool.dst-bench]
# client = "triton_client"  # in an environment of its own: it and this server register the same messages
# [tool.dst-bench.rows]
# mlserver_grpc = { name = "MLServer, gRPC (tritonclient)", wire = "grpc" }
# mlserver_http = { name = "MLServer, HTTP with JSON (tritonclient)", wire = "json" }  # it has no binary tensors
# ///
# mypy: disable-error-code="import-not-found,import-untyped"
"""MLServer with a runtime of our own for the ONNX file, inference in the server's own process: the fastest it can be set to."""

import asyncio
import dataclasses

import mlserver
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.case import Case
from benchmarks.child import main
from benchmarks.peers.model import open_model


class OnnxRuntime(mlserver.MLModel):  # type: ignore[misc]
    """The policy as an MLServer model."""

    async def load(self) -> bool:
        """Open the model."""
        self._model = open_model(Case(**self.settings.parameters.extra))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Inference."""
        outputs = self._model(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(
            model_name=self.name,
            outputs=[NumpyCodec.encode_output(name, values) for name, values in outputs.items()],
        )


def serve(case: Case) -> None:
    """Serve until the process is ended."""
    settings = mlserver.Settings(
        host="127.0.0.1",
        http_port=case.port("http"),
        grpc_port=case.port("grpc"),
        metrics_endpoint=None,
        parallel_workers=0,
    )
    model = mlserver.ModelSettings(
        name=case.policy,
        implementation=OnnxRuntime,
        parameters=mlserver.settings.ModelParameters(extra=dataclasses.asdict(case)),
    )

    async def run() -> None:
        await mlserver.MLServer(settings).start([model])

    asyncio.run(run())


if __name__ == "__main__":
    main(serve=serve)
