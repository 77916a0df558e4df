"""Everything that serves one set of loaded policies in one process."""

import asyncio
import functools

from server.bundle import load_bundle
from server.config import ServeConfig
from server.core import Core
from server.errors import AddressError
from server.grpc_native import NativeServer
from server.http_api import create_app
from server.http_server import HttpServer
from server.interception import GrpcInterceptor, HttpInterceptor
from server.listen import bound_socket, check_bindable
from server.live import Live
from server.oip.inference_service import InferenceService
from server.repository import Repository
from server.runtime import Runtime
from server.served_policy import ServedPolicy
from server.telemetry import Telemetry
from server.tracing import tracing_from_environment

GRACE_S = 5.0
"""How long what has begun may take once the server is told to stop."""


class PolicyServer:
    """`start`, then `stop`."""

    def __init__(self, core: Core, config: ServeConfig, *, worker_repository: Repository | None = None) -> None:
        """A worker, which has a repository with others, shares its gRPC port with them and leaves HTTP to the process in front.

        Raises:
            TracingError: the environment asks for traces that cannot be written.
        """
        self.core = core
        self._config = config
        self._worker = worker_repository is not None
        self._tracing = tracing_from_environment()
        self.telemetry = Telemetry(tracing=self._tracing)
        observe(core, self.telemetry)
        self.live = Live(core, clock=core.clock)
        repository = worker_repository or own_repository(core, config)
        self.open_inference = InferenceService(core, repository, self.telemetry)
        self._native = NativeServer(
            core,
            self.live,
            self.telemetry,
            self.open_inference,
            max_message_bytes=config.max_message_bytes,
            interceptors=(GrpcInterceptor(self._tracing),),
            share_port=self._worker,
            rehearsal=config.rehearsal,
        )
        self.grpc_address = config.grpc_address
        self.http_address = config.http_address
        app = create_app(core, self.live, self.telemetry, self.open_inference, max_body_bytes=config.max_message_bytes)
        self._http = HttpServer(HttpInterceptor(app, self._tracing), grace_s=GRACE_S)

    async def start(self) -> None:
        """Binds both addresses and serves; afterwards `grpc_address` and `http_address` name the real ports.

        Raises:
            AddressError: an address cannot be bound.
        """
        if self._worker:
            self._listen_grpc()
            self.show_missing("workers are starting")
            await self._native.start()
            return
        check_bindable(self.grpc_address, "--grpc")
        http_socket = bound_socket(self.http_address, "--http")
        try:
            self._listen_grpc()
        except AddressError:
            http_socket.close()
            raise
        self.http_address = self.http_address.with_port(http_socket.getsockname()[1])
        self.live.grpc_address = str(self.grpc_address)
        await self._native.start()
        await self._http.start(http_socket)

    def _listen_grpc(self) -> None:
        try:
            port = self._native.listen(str(self.grpc_address))
        except RuntimeError as error:
            raise AddressError(f"--grpc {self.grpc_address} cannot be bound; choose another address") from error
        self.grpc_address = self.grpc_address.with_port(0 if self.grpc_address.unix else port)

    def show_missing(self, missing: str) -> None:
        """Shows that the whole server is not ready, and why; or with an empty text that it is."""
        self.core.missing = lambda: missing
        self._native.show_health()

    async def stop(self) -> None:
        """Refuses new work, finishes what has begun, ends streams, closes."""
        self.core.stop_accepting()
        self._native.drain()
        self.live.close()
        await self._http.stop()
        await self._native.stop(GRACE_S)
        await self.core.close()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)


def load(config: ServeConfig) -> Core:
    """Loads and verifies all bundles.

    Raises:
        ServingError: a bundle is refused, a provider is missing, or two bundles have one name.
    """
    return Core([ServedPolicy(Runtime(load_bundle(path), config.provider)) for path in config.bundles])


def own_repository(core: Core, config: ServeConfig) -> Repository:
    """The repository of a server that is one process."""
    directories = {name: policy.runtime.path for name, policy in core.policies.items()}
    return Repository(core, directories, lambda path: Runtime(load_bundle(path), config.provider))


def observe(core: Core, telemetry: Telemetry) -> None:
    """Has `telemetry` count what becomes of the policies that are loaded now and later, and of the promises made for them."""
    telemetry.granted_load = core.admission.share_of

    def changed(name: str, policy: ServedPolicy | None) -> None:
        if policy is None:
            telemetry.remove_policy(name)
            return
        telemetry.add_policy(policy.manifest)
        policy.batcher.on_batch = functools.partial(telemetry.batch, name)
        policy.batcher.line.on_length = functools.partial(telemetry.queue_depth, name)

    core.watchers.append(changed)
    for name, policy in core.policies.items():
        changed(name, policy)


def event_loop() -> "type[asyncio.AbstractEventLoop] | None":
    """The fastest event loop that is installed; None for asyncio's own."""
    try:
        import uvloop  # noqa: PLC0415 - not available on every platform
    except ImportError:
        return None
    return uvloop.Loop
