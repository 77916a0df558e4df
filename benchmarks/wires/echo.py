"""The least a control round trip can cost: a bare gRPC stream that answers every message by one of a decision's size."""

import asyncio
import contextlib
import itertools
import queue
from collections.abc import AsyncIterator, Iterator

import grpc
import uvloop

from benchmarks.case import Case
from benchmarks.child import Ask, main
from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub

REPLY = pb.ControlResponse(
    decision=pb.ControlDecision(
        tick=1,
        status=pb.DECISION_STATUS_OK,
        policy_version="0" * 64,
        decision=pb.Decision(
            action=[0.0] * 6,
            summary=pb.Summary(
                return_quantiles_raw=[0.0] * 9,
                return_quantiles_corrected=[0.0] * 9,
                gradient_mean=[0.0] * 6,
                gradient_std=[0.0] * 6,
                gradient_sign_agreement=[0.0] * 6,
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


def serve(case: Case) -> None:
    """Echo until the process is ended."""

    async def run() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((HANDLERS,))
        server.add_insecure_port(case.grpc)
        await server.start()
        await asyncio.Event().wait()

    uvloop.run(run())


@contextlib.contextmanager
def client(case: Case) -> Iterator[Ask]:
    """One stream."""
    messages = itertools.cycle(
        [pb.ControlRequest(observation=pb.Observation(tick=1, values=row)) for row in case.observations]
    )
    outgoing: queue.SimpleQueue[pb.ControlRequest | None] = queue.SimpleQueue()
    with grpc.insecure_channel(case.grpc) as channel:
        incoming = PolicyServiceStub(channel).Control(iter(outgoing.get, None))

        def ask() -> None:
            outgoing.put(next(messages))
            next(incoming)

        try:
            yield ask
        finally:
            outgoing.put(None)


if __name__ == "__main__":
    main(clients={"grpc": client}, serve=serve)
