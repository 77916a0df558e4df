"""Configuration of `dst-serve`; its command line is made from it."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from server.errors import AddressError
from server.logs import LogFormat, LogLevel
from server.runtime import Provider

MAX_WORKERS = 256


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to listen: a TCP host and port, or a Unix socket."""

    host: str = ""
    port: int = 0
    unix: str = ""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.unix or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def with_port(self, port: int) -> "Address":
        """The same address with the port that was really bound."""
        return Address(host=self.host, port=port, unix=self.unix)

    def __str__(self) -> str:
        """As given on the command line and as gRPC takes it."""
        if self.unix:
            return f"unix:{self.unix}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str, option: str) -> Address:
    """`host:port`, `[ipv6]:port` or `unix:PATH`.

    Raises:
        AddressError: the text is none of them.
    """
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Address(unix=text.removeprefix("unix:"))
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]\s]+)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise AddressError(
            f"{option} must be HOST:PORT with a port up to 65535, got {text!r}; for instance 127.0.0.1:0"
        )
    return Address(host=match[1] or match[2], port=int(match[3]))


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Serves policy bundles over gRPC and HTTP."""

    bundles: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE [BUNDLE ...]")]
    """Directories that dst-export wrote."""
    grpc: str = "127.0.0.1:50051"
    """Where gRPC listens: HOST:PORT or unix:PATH. Port 0 takes a free one."""
    http: str = "127.0.0.1:8080"
    """Where HTTP and the page listen: HOST:PORT. Port 0 takes a free one."""
    provider: Provider = "auto"
    """What ONNX Runtime runs on; `auto` prefers CUDA and falls back; the others refuse to start without what they name."""
    workers: int = 1
    """Processes that answer gRPC on the one port, each on a core of its own. Above 1, one more answers HTTP for all."""
    rehearsal: bool = True
    """Compute a robot's last decision once more, for nobody, shortly before it is expected to ask: the next one comes sooner. Only while
    nothing else is to do; costs one decision a tick."""
    log_format: LogFormat = "text"
    """Lines for people, or one JSON object a line."""
    log_level: LogLevel = "info"
    """The least that is logged."""
    max_message_bytes: int = 1 << 20
    """Largest gRPC message and HTTP body accepted, in bytes."""

    def __post_init__(self) -> None:
        """Raises ValueError on values that cannot be served."""
        if not self.bundles:
            raise ValueError("at least one bundle must be given: the directory that dst-export wrote")
        if not 1024 <= self.max_message_bytes <= 1 << 30:
            raise ValueError(f"max_message_bytes must lie between 1024 and {1 << 30}, got {self.max_message_bytes}")
        if not 1 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"workers must lie between 1 and {MAX_WORKERS}, got {self.workers}; one per core")
        if self.workers > 1 and self.grpc_address.unix:
            raise AddressError(
                f"--workers {self.workers} need a port to share, got --grpc {self.grpc}; give HOST:PORT, or serve with --workers 1"
            )
        if self.http_address.unix:
            raise AddressError(f"--http must be HOST:PORT, got {self.http!r}; a Unix socket is for gRPC only")
        if self.grpc_address == self.http_address and self.grpc_address.port:
            raise AddressError(f"--grpc and --http must differ, both are {self.grpc}")

    @property
    def grpc_address(self) -> Address:
        """`grpc`, parsed."""
        return parse_address(self.grpc, "--grpc")

    @property
    def http_address(self) -> Address:
        """`http`, parsed."""
        return parse_address(self.http, "--http")
