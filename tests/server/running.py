"""The real server on free ports, in a thread of the test process, and a robot that talks to it."""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import httpx
import numpy as np

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from server.bundle import Bundle
from server.config import ServeConfig
from server.core import Core
from server.policy_server import PolicyServer
from server.runtime import Detail, FloatArray, Runtime
from server.served_policy import ServedPolicy

PATIENCE_S = 30
SECOND = 1_000_000_000


class FakeClock:
    """Nanoseconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now = SECOND

    def __call__(self) -> int:
        return self.now


class GatedRuntime(Runtime):
    """The real runtime, each decision of which waits for the test's permission once `armed`."""

    armed = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.entered = threading.Semaphore(0)
        self.permitted = threading.Semaphore(0)

    def rows(self, observations: FloatArray, detail: Detail) -> FloatArray:
        if self.armed:
            self.entered.release()
            assert self.permitted.acquire(timeout=PATIENCE_S)
        return super().rows(observations, detail)

    def wait_until_entered(self) -> None:
        assert self.entered.acquire(timeout=PATIENCE_S), "no decision was begun"


class Running:
    """A `PolicyServer` on an event loop of its own."""

    def __init__(self, core: Core, **settings: Any) -> None:
        self.core = core
        settings = {"grpc": "127.0.0.1:0", "http": "127.0.0.1:0", **settings}
        self._config = ServeConfig(bundles=(Path("in-memory"),), **settings)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._failure: BaseException | None = None

    @classmethod
    def of(cls, bundle: Bundle, **settings: Any) -> Self:
        return cls(Core([ServedPolicy(Runtime(bundle, "cpu"))]), **settings)

    async def _serve(self) -> None:
        self._loop, self._stopped = asyncio.get_running_loop(), asyncio.Event()
        server = PolicyServer(self.core, self._config)
        try:
            await server.start()
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._ready.set()
        self.grpc, self.http = str(server.grpc_address), f"http://{server.http_address}"
        self._started.set()
        await self._stopped.wait()
        await server.stop()

    def __enter__(self) -> Self:
        self._started = threading.Event()
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        assert self._failure is None
        assert self._started.wait(PATIENCE_S)
        self.channel = grpc.insecure_channel(self.grpc)
        self.stub = PolicyServiceStub(self.channel)
        self.client = httpx.Client(base_url=self.http, timeout=PATIENCE_S)
        return self

    def call(self, work: Coroutine[Any, Any, None]) -> None:
        """Does something on the server's event loop."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    def begin_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)

    def __exit__(self, *_: object) -> None:
        self.begin_stop()
        self.channel.close()
        self.client.close()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the server did not stop"

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series of `/metrics`; 0 where it does not exist."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
                return float(line.rsplit(" ", 1)[1])
        return 0.0


class Robot:
    """One control stream."""

    def __init__(self, address: str, **opening: Any) -> None:
        # A connection of its own, as a robot on a machine of its own has.
        self.channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        self._requests: queue.SimpleQueue[pb.ControlRequest | None] = queue.SimpleQueue()
        self.responses = PolicyServiceStub(self.channel).Control(iter(self._requests.get, None), timeout=PATIENCE_S)
        self.send(pb.ControlRequest(open=pb.OpenSession(**opening)))
        self.opened = next(self.responses).opened

    def send(self, request: pb.ControlRequest) -> None:
        self._requests.put(request)

    def observe(self, tick: int, values: Any = (0.1, 0.2, 0.3), **fields: Any) -> None:
        fields = {"sent_ns": 1000 + tick, "validity_ns": 10 * SECOND, **fields}
        self.send(pb.ControlRequest(observation=pb.Observation(tick=tick, values=values, **fields)))

    def answer(self) -> pb.ControlDecision:
        return next(self.responses).decision

    def half_close(self) -> None:
        self._requests.put(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._requests.put(None)
        self.responses.cancel()
        self.channel.close()


def eventually(holds: Callable[[], bool], what: str) -> None:
    """Waits for something that another thread or process is about to do."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def decided(runtime: Runtime, values: Any) -> list[float]:
    """The action that the policy itself gives."""
    return runtime.infer(np.float32([values]), Detail.NONE)[0][0].tolist()
