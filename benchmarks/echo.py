"""The least a control round trip can cost: a bare gRPC stream that sends every message back."""

import contextlib
import multiprocessing
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing.connection import Connection

import grpc
import uvloop

from benchmarks.errors import BenchmarkError
from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub

START_TIMEOUT_S = 30
MESSAGE = pb.ControlRequest(observation=pb.Observation(tick=1, values=[0.0] * 17))
REPLY = pb.ControlResponse(
    decision=pb.ControlDecision(
        tick=1,
        status=pb.DECISION_STATUS_OK,
        decision=pb.Decision(
            action=[0.0] * 6,
            summary=pb.Summary(
                return_quantiles_raw=[0.0] * 9, return_quantiles_corrected=[0.0] * 9, gradient_mean=[0.0] * 6
            ),
        ),
    )
)


async def _echo(requests: AsyncIterator[pb.ControlRequest], _context: object) -> AsyncIterator[pb.ControlResponse]:
    async for _ in requests:
        yield REPLY


HANDLERS = grpc.method_handlers_generic_handler(
    "dst.policy.v1.PolicyService",
    {
        "Control": grpc.stream_stream_rpc_method_handler(
            _echo,
            request_deserializer=pb.ControlRequest.FromString,
            response_serializer=pb.ControlResponse.SerializeToString,
        )
    },
)


def _serve(port: Connection) -> None:
    async def run() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((HANDLERS,))
        port.send(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        await server.wait_for_termination()

    uvloop.run(run())


@contextlib.contextmanager
def echo_stream() -> Iterator[Callable[[], None]]:
    """Give a call that sends one message through a stream to another process and waits for the answer."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    try:
        if not ours.poll(START_TIMEOUT_S):
            raise BenchmarkError(f"the echo server did not start within {START_TIMEOUT_S} s")
        outgoing: queue.SimpleQueue[pb.ControlRequest | None] = queue.SimpleQueue()
        with grpc.insecure_channel(f"127.0.0.1:{ours.recv()}") as channel:
            incoming = PolicyServiceStub(channel).Control(iter(outgoing.get, None))

            def exchange() -> None:
                outgoing.put(MESSAGE)
                next(incoming)

            try:
                yield exchange
            finally:
                outgoing.put(None)
    finally:
        process.terminate()
        process.join()
