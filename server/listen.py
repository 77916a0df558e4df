"""Binds the server's addresses, with one readable line where that fails."""

import socket
import stat
import sys
from pathlib import Path
from typing import Any

from server.config import Address
from server.errors import AddressError

_AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]


def bound_socket(address: Address, option: str) -> socket.socket:
    """A TCP socket bound to `address`, not yet listening.

    Raises:
        AddressError: the port is in use, the host is none of this machine's, or it may not be bound.
    """
    family, kind, protocol, _, place = _resolved(address, option)
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        # Two sockets that only bind may share a port; listening is what fails on one in use.
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise AddressError(
            f"{option} {address}: {error.strerror}; stop what listens there or choose another port (0 takes a free one)"
        ) from error
    return bound


def _resolved(address: Address, option: str) -> _AddressInfo:
    try:
        return socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise AddressError(f"{option} {address}: {error.strerror}; give an address of this machine") from error


def shared_socket(address: Address, option: str) -> socket.socket:
    """A TCP socket that holds the port of `address` for servers that share it, and takes no connection itself.

    Raises:
        AddressError: this system cannot share a port, or it cannot be bound.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise AddressError(
            f"--workers above 1 needs a system on which processes can share a port (SO_REUSEPORT), {sys.platform} has none; "
            "serve with --workers 1"
        )
    family, kind, protocol, _, place = _resolved(address, option)
    shared = socket.socket(family, kind, protocol)
    try:
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(place)
    except OSError as error:
        shared.close()
        raise AddressError(f"{option} {address}: {error.strerror}; choose another port (0 takes a free one)") from error
    return shared


def check_bindable(address: Address, option: str) -> None:
    """Raises AddressError where gRPC, which binds by itself, could not bind `address` or would take it over."""
    if not address.unix:
        bound_socket(address, option).close()
        return
    path = Path(address.unix)
    if not path.parent.is_dir():
        raise AddressError(f"{option} {address}: {path.parent} is not a directory; create it first")
    if not path.exists():
        return
    if not stat.S_ISSOCK(path.stat().st_mode):
        raise AddressError(f"{option} {address}: {path} exists and is no socket; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return  # left over by a server that is gone: gRPC replaces it
    raise AddressError(f"{option} {address}: another server listens there; stop it or choose another path")
