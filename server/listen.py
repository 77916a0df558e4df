"""Binds the server's addresses, with one readable line where that fails."""

import socket
import stat
from pathlib import Path

from server.config import Address
from server.errors import AddressError


def bound_socket(address: Address, option: str) -> socket.socket:
    """A TCP socket bound to `address`, not yet listening.

    Raises:
        AddressError: the port is in use, the host is none of this machine's, or it may not be bound.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise AddressError(f"{option} {address}: {error.strerror}; give an address of this machine") from error
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
