"""How a connection to a policy server is made, for the synchronous and the asyncio client alike."""

import secrets

import grpc

CHANNEL_OPTIONS = (
    # A robot waits for a server that restarts: try again often, where gRPC would pause for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # An attempt to connect is given up after this long, in place of 20 s.
    ("grpc.min_reconnect_backoff_ms", 1000),
    # A connection whose other end vanished without a word is noticed and made anew, in place of trying it for minutes.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 2000),
    ("grpc.http2.ping_timeout_ms", 2000),
    # A proxy meant for browsers has no place between a robot and its policy.
    ("grpc.enable_http_proxy", 0),
    # Each client has connections of its own: another client's backoff is not ours.
    ("grpc.use_local_subchannel_pool", 1),
)


def open_channel(address: str) -> grpc.Channel:
    """A channel to the server at `host:port` or `unix:PATH`, with a connection of its own."""
    return grpc.insecure_channel(address, options=_options())


def open_aio_channel(address: str) -> grpc.aio.Channel:
    """The same for asyncio; belongs to the running event loop."""
    return grpc.aio.insecure_channel(address, options=_options())


def _options() -> tuple[tuple[str, int | str], ...]:
    """With a name for the channel: over a Unix socket a server cannot tell its clients apart otherwise, and shares its time among them."""
    return (*CHANNEL_OPTIONS, ("grpc.primary_user_agent", f"sim-bridge/{secrets.token_hex(4)}"))


def unreachable_text(address: str, timeout_s: float) -> str:
    """What to tell when no connection was accepted in time."""
    return (
        f"policy server must accept connections at {address}, got none within {timeout_s:g} s; "
        f"start it with `dst-serve BUNDLE --grpc {address}` or correct the address"
    )
