# /// script
# dependencies = ["openpi-client", "typing-extensions"]  # which that client needs and does not name
# [tool.dst-bench.rows]
# openpi_ws = { name = "openpi's websocket wire (openpi-client)", wire = "ws" }
# ///
# mypy: disable-error-code="import-not-found,import-untyped"
"""openpi's websocket wire: MessagePack with numpy arrays, one message each way, inference on the event loop.

openpi itself is on no package index; its client is. This server does what openpi's does with that client's own MessagePack:
metadata first, then for every observation the policy's outputs and their timing, uncompressed, on plain asyncio.
"""

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator

import numpy as np
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websocket

from benchmarks.case import Case
from benchmarks.child import Ask, main
from benchmarks.peers.model import open_model


def serve(case: Case) -> None:
    """Serve until the process is ended."""
    model = open_model(case)

    async def handle(connection: ServerConnection) -> None:
        packer = msgpack_numpy.Packer()
        await connection.send(packer.pack({}))
        async for message in connection:
            began = time.monotonic()
            observation = msgpack_numpy.unpackb(message)["observation"]
            outputs = {name: values[0] for name, values in model(observation[np.newaxis]).items()}
            timing = {"infer_ms": (time.monotonic() - began) * 1000}
            await connection.send(packer.pack(outputs | {"server_timing": timing}))

    async def run() -> None:
        async with serve_websocket(handle, "127.0.0.1", case.port("http"), compression=None, max_size=None):
            await asyncio.Event().wait()

    asyncio.run(run())


@contextlib.contextmanager
def client(case: Case) -> Iterator[Ask]:
    """One connection of openpi's own client."""
    rows = itertools.cycle(np.asarray(case.observations, np.float32))
    policy = WebsocketClientPolicy("127.0.0.1", case.port("http"))
    case.check(policy.infer({"observation": next(rows)}))
    yield lambda: policy.infer({"observation": next(rows)})


if __name__ == "__main__":
    main(clients={"ws": client}, serve=serve)
