"""`dst-serve`: start-up, serving and shutdown in one place."""

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence

import tyro
import uvicorn
from rich.console import Console
from rich.table import Column, Table

from server.bundle import load_bundle
from server.config import ServeConfig
from server.core import Core
from server.errors import AddressError, ServingError
from server.grpc_native import NativeServer
from server.http_api import create_app
from server.listen import bound_socket, check_bindable
from server.live import Live
from server.runtime import Runtime
from server.served_policy import ServedPolicy
from server.telemetry import Telemetry

logger = logging.getLogger(__name__)

GRACE_S = 5.0
"""How long what has begun may take once the server is told to stop."""
MAX_HTTP_CONNECTIONS = 256


class HttpServer(uvicorn.Server):
    """Uvicorn inside this process's loop; the process handles its own signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signal handlers as they are."""
        yield


class PolicyServer:
    """Everything that serves one set of loaded policies; `start`, then `stop`."""

    def __init__(self, core: Core, config: ServeConfig) -> None:
        self.core = core
        self._config = config
        self.telemetry = Telemetry()
        core.watchers.append(self._observe)
        for name, policy in core.policies.items():
            self._observe(name, policy)
        self.live = Live(core, clock=core.clock)
        self._native = NativeServer(core, self.live, self.telemetry, max_message_bytes=config.max_message_bytes)
        self.grpc_address = config.grpc_address
        self.http_address = config.http_address
        self._http: HttpServer | None = None
        self._http_task: asyncio.Task[None] | None = None

    def _observe(self, name: str, policy: ServedPolicy | None) -> None:
        if policy is None:
            self.telemetry.remove_policy(name)
            return
        self.telemetry.add_policy(policy.manifest)
        policy.batcher.on_batch = functools.partial(self.telemetry.batch, name)
        policy.batcher.on_waiting = functools.partial(self.telemetry.queue_depth, name)

    async def start(self) -> None:
        """Binds both addresses and serves; afterwards `grpc_address` and `http_address` name the real ports.

        Raises:
            AddressError: an address cannot be bound.
        """
        check_bindable(self.grpc_address, "--grpc")
        http_socket = bound_socket(self.http_address, "--http")
        try:
            port = self._native.listen(str(self.grpc_address))
        except RuntimeError as error:
            http_socket.close()
            raise AddressError(f"--grpc {self.grpc_address} cannot be bound; choose another address") from error
        self.grpc_address = self.grpc_address.with_port(0 if self.grpc_address.unix else port)
        self.http_address = self.http_address.with_port(http_socket.getsockname()[1])
        self.live.grpc_address = str(self.grpc_address)
        await self._native.start()
        await self._start_http(http_socket)

    async def _start_http(self, http_socket: socket.socket) -> None:
        app = create_app(self.core, self.live, self.telemetry, max_body_bytes=self._config.max_message_bytes)
        self._http = HttpServer(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                limit_concurrency=MAX_HTTP_CONNECTIONS,
                timeout_graceful_shutdown=int(GRACE_S),
            )
        )
        self._http_task = asyncio.create_task(self._http.serve(sockets=[http_socket]))
        while not self._http.started and not self._http_task.done():
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Refuses new work, finishes what has begun, ends streams, closes."""
        self.core.stop_accepting()
        await self._native.drain()
        self.live.close()
        if self._http is not None and self._http_task is not None:
            self._http.should_exit = True
            await self._http_task
        await self._native.stop(GRACE_S)
        await self.core.close()


def load(config: ServeConfig) -> Core:
    """Loads and verifies all bundles.

    Raises:
        ServingError: a bundle is refused, a provider is missing, or two bundles have one name.
    """
    return Core([ServedPolicy(Runtime(load_bundle(path), config.provider)) for path in config.bundles])


async def serve(core: Core, config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = PolicyServer(core, config)
    await server.start()
    # What was loaded lives as long as the process: the collector need not look at it in the middle of a control tick.
    gc.collect()
    gc.freeze()
    _announce(server)
    await stopped.wait()
    logger.info("draining")
    await server.stop()
    logger.info("stopped")


def _announce(server: PolicyServer) -> None:
    version = Column("version", no_wrap=True)
    table = Table("policy", version, "environment", "calibrated", "provider", "decision", "runs")
    for name, policy in server.core.policies.items():
        manifest, runtime = policy.manifest, policy.runtime
        table.add_row(
            name,
            manifest.version[:12],
            manifest.task.environment,
            "no" if manifest.calibration is None else "yes",
            runtime.provider.removesuffix("ExecutionProvider"),
            f"{runtime.inference_s * 1e3:.2f} ms",
            "on the event loop" if policy.inline else "in a thread",
        )
    Console().print(table)
    for name, policy in server.core.policies.items():
        if policy.manifest.calibration is None:
            logger.warning(
                "policy %s is not calibrated: its stated ranges are the critics' own belief; "
                "export the run again without --uncalibrated to serve ranges that were compared with real returns",
                name,
            )
    for option, address in (("--grpc", server.grpc_address), ("--http", server.http_address)):
        if not address.loopback:
            logger.warning(
                "%s %s can be reached from other machines, and this server does not authenticate anyone; "
                "listen on 127.0.0.1 unless the network is trusted",
                option,
                address,
            )
    sys.stdout.write(f"ready grpc={server.grpc_address} http=http://{server.http_address}\n")
    sys.stdout.flush()


def run(config: ServeConfig) -> int:
    """Loads, serves, and returns the exit code: 0 after a drain, 2 where it cannot start."""
    try:
        core = load(config)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(core, config))
    except ServingError as error:
        sys.stderr.write(f"dst-serve: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _loop_factory() -> "type[asyncio.AbstractEventLoop] | None":
    try:
        import uvloop  # noqa: PLC0415 - not available on every platform
    except ImportError:
        return None
    return uvloop.Loop


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        config = tyro.cli(ServeConfig, prog="dst-serve", args=arguments)
    except ValueError as error:
        sys.stderr.write(f"dst-serve: {error}\n")
        return 2
    return run(config)


if __name__ == "__main__":
    sys.exit(main())
