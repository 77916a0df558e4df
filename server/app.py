"""`dst-serve`: start-up, serving and shutdown in one place."""

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any

import tyro
from rich.console import Console
from rich.table import Column, Table

from server import logs
from server.config import ServeConfig
from server.errors import ServingError
from server.front import FrontServer
from server.policy_server import PolicyServer, event_loop, load

logger = logging.getLogger(__name__)


async def serve(config: ServeConfig) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        ServingError: it cannot start, or its workers cannot be kept alive.
    """
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = PolicyServer(load(config), config) if config.workers == 1 else FrontServer(config)
    await server.start()
    # What was loaded lives as long as the process: the collector need not look at it in the middle of a control tick.
    gc.collect()
    gc.freeze()
    _announce(server)
    try:
        await _either(stopped, server)
    finally:
        logger.info("draining")
        await server.stop()
        logger.info("stopped")


async def _either(stopped: asyncio.Event, server: PolicyServer | FrontServer) -> None:
    """Returns once the server is told to stop; raises once it must give up."""
    waiting: asyncio.Future[Any] = asyncio.ensure_future(stopped.wait())
    failed = [server.failed] if isinstance(server, FrontServer) else []
    await asyncio.wait([waiting, *failed], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    for failure in failed:
        if failure.done():
            failure.result()


def _announce(server: PolicyServer | FrontServer) -> None:
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
    """Loads, serves, and returns the exit code: 0 after a drain, 2 where it cannot start or go on."""
    try:
        with asyncio.Runner(loop_factory=event_loop()) as runner:
            runner.run(serve(config))
    except ServingError as error:
        sys.stderr.write(f"dst-serve: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    try:
        config = tyro.cli(ServeConfig, prog="dst-serve", args=arguments)
    except ValueError as error:
        sys.stderr.write(f"dst-serve: {error}\n")
        return 2
    logs.configure(config.log_format, config.log_level)
    return run(config)


if __name__ == "__main__":
    sys.exit(main())
