"""The process in front of several workers: HTTP, the page, and one view of the health and metrics of all."""

import asyncio
import contextlib
import json
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from server.bundle import Bundle, load_bundle
from server.bundle_store import BundleStore
from server.config import ServeConfig
from server.core import Core
from server.errors import ServingError
from server.front_repository import FrontRepository
from server.http_api import create_app
from server.http_server import HttpServer
from server.interception import HttpInterceptor
from server.listen import bound_socket, check_bindable, shared_socket
from server.live import Live
from server.oip.inference_service import InferenceService
from server.oip.messages import ModelStatistics
from server.oip.statistics import statistics_to_json
from server.policy_server import GRACE_S, observe
from server.runtime import Runtime
from server.served_policy import ServedPolicy
from server.telemetry import Telemetry
from server.tracing import Tracing, tracing_from_environment
from server.worker_link import Link, Question
from server.workers import Workers

KILL_AFTER_S = GRACE_S + 3.0
"""When a worker that was told to drain is killed: it takes up to `GRACE_S` itself."""


class FrontServer:
    """`start`, then `stop`. Answers HTTP itself, with policies of its own; its workers answer gRPC."""

    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self.grpc_address = config.grpc_address
        self.http_address = config.http_address
        self._closing = contextlib.AsyncExitStack()
        self.core: Core
        self.failed: asyncio.Future[Any]
        """Raises WorkersError once the workers cannot be kept alive."""
        self._workers: Workers
        self._repository: FrontRepository
        self._open_inference: InferenceService

    async def start(self) -> None:
        """Binds both addresses, starts the workers and returns once all serve; `core` and `failed` exist from then on.

        Raises:
            ServingError: an address cannot be bound, a bundle is refused, or the workers do not start.
        """
        try:
            await self._start()
        except BaseException:
            await self._closing.aclose()
            raise

    async def _start(self) -> None:
        tracing = tracing_from_environment()
        check_bindable(self.grpc_address, "--grpc")
        http_socket = self._closing.enter_context(bound_socket(self.http_address, "--http"))
        # Held for as long as the server lives, so that the port is its own while a worker is started again.
        reserved = self._closing.enter_context(shared_socket(self.grpc_address, "--grpc"))
        self.grpc_address = self.grpc_address.with_port(reserved.getsockname()[1])
        self.http_address = self.http_address.with_port(http_socket.getsockname()[1])
        directory = Path(tempfile.mkdtemp(prefix="dst-serve-"))
        self._closing.callback(shutil.rmtree, directory, ignore_errors=True)
        store, front = BundleStore(directory / "bundles"), directory / "front.sock"
        bundles = await asyncio.to_thread(self._read, store)
        kept = {bundle.manifest.name: store.path(bundle.manifest.version) for bundle in bundles}
        workers = self._workers = Workers(replace(self._config, grpc=str(self.grpc_address)), directory, kept, front)
        self.failed = workers.failed
        self._closing.push_async_callback(workers.stop, KILL_AFTER_S)
        starting = asyncio.create_task(workers.start())
        try:
            # Verifies the bundles meanwhile; what a worker finds wrong with them is found here, too.
            self.core = await asyncio.to_thread(self._serve, bundles)
            self.core.missing = lambda: workers.missing
            self._closing.push_async_callback(self.core.close)
            await starting
        finally:
            starting.cancel()
        await self._start_http(workers, store, http_socket, tracing)
        link = Link(self._answer)
        await link.start(str(front))
        self._closing.push_async_callback(link.stop)

    def _read(self, store: BundleStore) -> list[Bundle]:
        bundles = list(map(load_bundle, self._config.bundles))
        for bundle in bundles:
            store.keep(bundle)
        return bundles

    def _serve(self, bundles: list[Bundle]) -> Core:
        return Core([ServedPolicy(Runtime(bundle, self._config.provider)) for bundle in bundles])

    async def _start_http(
        self, workers: Workers, store: BundleStore, http_socket: socket.socket, tracing: Tracing | None
    ) -> None:
        if tracing is not None:
            self._closing.push_async_callback(asyncio.to_thread, tracing.close)
        telemetry = _FrontTelemetry(workers, tracing)
        observe(self.core, telemetry)
        live = _FrontLive(self.core, workers)
        live.grpc_address = str(self.grpc_address)

        def load(path: Path) -> Runtime:
            bundle = load_bundle(path)
            store.keep(bundle)
            return Runtime(bundle, self._config.provider)

        directories = {name: policy.runtime.path for name, policy in self.core.policies.items()}
        repository = self._repository = FrontRepository(self.core, directories, load, workers=workers, store=store)
        service = self._open_inference = InferenceService(self.core, repository, telemetry)
        service.everywhere = self._statistics
        app = create_app(self.core, live, telemetry, service, max_body_bytes=self._config.max_message_bytes)
        http = HttpServer(HttpInterceptor(app, tracing), grace_s=GRACE_S)
        await http.start(http_socket)
        self._closing.push_async_callback(http.stop)
        self._closing.callback(live.close)

    async def _statistics(self) -> list[ModelStatistics]:
        return [*self._open_inference.own_statistics(), *await self._workers.statistics()]

    async def _answer(self, question: Question) -> AsyncIterator[str]:
        """What a worker asks."""
        match question:
            case {"ask": "statistics"}:
                yield statistics_to_json(await self._statistics())
            case {"ask": "load" | "unload" as change, "name": str(name)}:
                try:
                    await (self._repository.load if change == "load" else self._repository.unload)(name)
                except ServingError as error:
                    yield json.dumps(str(error))

    async def stop(self) -> None:
        """Refuses new work; has all processes finish what they have begun; closes."""
        self.core.stop_accepting()
        # HTTP goes on telling of health and robots until the last worker has drained.
        await self._workers.stop(KILL_AFTER_S)
        await self._closing.aclose()


class _FrontTelemetry(Telemetry):
    def __init__(self, workers: Workers, tracing: Tracing | None) -> None:
        super().__init__(tracing=tracing)
        self._workers = workers

    def collect(self) -> Iterator[Metric]:
        yield from super().collect()
        ready, restarts = self._workers.ready, self._workers.restarts
        yield GaugeMetricFamily("dst_workers_ready", "Worker processes that answer robots.", ready)
        yield CounterMetricFamily(
            "dst_worker_restarts", "Worker processes that ended and were started again.", restarts
        )

    async def scraped(self) -> bytes:
        return await self._workers.exposition(self.exposition())


class _FrontLive(Live):
    def __init__(self, core: Core, workers: Workers) -> None:
        super().__init__(core, clock=core.clock)
        self._workers = workers

    async def robots(self, cursors: Mapping[str, int]) -> AsyncIterator[tuple[str, int, str]]:
        async for robot in self._workers.robots(cursors):
            yield robot
