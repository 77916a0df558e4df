# /// script
# dependencies = ["kserve"]
# [tool.dst-bench]
# client = "triton_client"  # in an environment of its own: it and this server register the same messages
# [tool.dst-bench.rows]
# kserve_grpc = { name = "KServe's Python server, gRPC (tritonclient)", wire = "grpc" }
# kserve_http = { name = "KServe's Python server, HTTP (tritonclient)", wire = "http" }
# ///
# mypy: disable-error-code="import-not-found,import-untyped"
"""KServe's Python model server with a model of our own for the ONNX file, one process."""

import kserve
from kserve import InferInput, InferOutput, InferRequest, InferResponse, ModelServer

from benchmarks.case import Case
from benchmarks.child import main
from benchmarks.peers.model import open_model


class OnnxModel(kserve.Model):  # type: ignore[misc]
    """The policy as a KServe model."""

    def __init__(self, case: Case) -> None:
        super().__init__(case.policy)
        self._model = open_model(case)
        self.enable_latency_logging = False
        self.ready = True

    async def predict(self, payload: InferRequest, *_: object, **__: object) -> InferResponse:
        """Inference."""
        observation: InferInput = payload.inputs[0]
        outputs = []
        for name, values in self._model(observation.as_numpy()).items():
            output = InferOutput(name, list(values.shape), "FP32")
            output.set_data_from_numpy(values, binary_data=True)
            outputs.append(output)
        return InferResponse(payload.id or "", self.name, outputs)


def serve(case: Case) -> None:
    """Serve until the process is ended."""
    server = ModelServer(
        http_port=case.port("http"),
        grpc_port=case.port("grpc"),
        workers=1,
        enable_docs_url=False,
        access_log_format=None,
    )
    server.start([OnnxModel(case)])


if __name__ == "__main__":
    main(serve=serve)
