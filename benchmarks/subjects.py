"""Who is measured: this project's wires and what they are held against, each with its server and a way to connect clients."""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from rich.progress import Progress

from benchmarks.case import Case
from benchmarks.child_environment import GRPC
from benchmarks.client_process import Client
from benchmarks.errors import BenchmarkError
from benchmarks.peers.peer import PEERS, Environments, read_peer
from benchmarks.server_process import Server, free_ports, listening_process
from server import READ_DIRECTLY
from server.bundle import SAMPLE_OUTPUTS, load_bundle, output_shapes

OBSERVATIONS = 64
OWN = (
    ("control", "control", "control", "grpc"),
    ("act", "act", "act", "grpc"),
    ("http_act", "act over HTTP", "act", "http"),
    ("infer", "inference in process", "infer", "process"),
)
ECHOES: tuple[tuple[str, str, Mapping[str, str]], ...] = (
    ("echo_stream", "gRPC echo stream", {}),
    ("echo_stream_direct", "the same, sockets read as this server reads them", {GRPC: READ_DIRECTLY}),
)
OPEN_INFERENCE = (
    ("oip_grpc", "this server, Open Inference Protocol, gRPC (tritonclient)", "grpc"),
    ("oip_http", "this server, Open Inference Protocol, HTTP (tritonclient)", "http"),
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One row of the table."""

    key: str
    """For scripts."""
    name: str
    """For people."""
    connect: Callable[[], Client]
    """Starts a client; it is not ready yet."""
    peer: bool = False
    """Whether it is left out where it fails, and does not end the measurement."""
    server_pid: int | None = None
    """The process that answers, where it is not the client itself."""


def case_of(bundle: Path) -> Case:
    """What all are asked: golden observations of the bundle, with the full summary.

    Raises:
        ServingError: the bundle is refused.
    """
    loaded = load_bundle(bundle)
    return Case(
        policy=loaded.manifest.name,
        bundle=str(bundle.resolve()),
        outputs=tuple(name for name in output_shapes(loaded.manifest) if name not in SAMPLE_OUTPUTS),
        observations=tuple(map(tuple, loaded.golden["observation"][:OBSERVATIONS].tolist())),
    )


def written(case: Case, scratch: Path, name: str, server: Server | None = None) -> Path:
    """The case as a file for one server; on free ports where none is given."""
    if server is None:
        grpc, http = (f"127.0.0.1:{port}" for port in free_ports(2))
        case = dataclasses.replace(case, grpc=grpc, http=f"http://{http}")
    else:
        case = dataclasses.replace(case, grpc=server.grpc, http=server.http)
    path = scratch / f"{name}.json"
    case.write(path)
    return path


def own_client(wire: str, kind: str, case_file: Path, environment: Mapping[str, str] = MappingProxyType({})) -> Client:
    """A client of this project, not ready yet."""
    return Client([sys.executable, "-m", f"benchmarks.wires.{wire}", "ask", kind, str(case_file)], environment)


def own_subjects(case: Case, server: Server, scratch: Path, stack: ExitStack) -> list[Subject]:
    """This project's wires, inference in process, and the echo streams, whose servers live as long as the stack."""
    path = written(case, scratch, "own", server)
    subjects = [
        Subject(
            key=key,
            name=name,
            connect=lambda wire=wire, kind=kind: own_client(wire, kind, path),  # type: ignore[misc]
            server_pid=None if kind == "process" else server.pid,
        )
        for key, name, wire, kind in OWN
    ]
    for key, name, environment in ECHOES:
        echo = written(case, scratch, key)
        command = [sys.executable, "-m", "benchmarks.wires.echo", "serve", str(echo)]
        ports = [Case.read(str(echo)).port("grpc")]
        pid = stack.enter_context(listening_process(command, ports=ports, environment=environment))
        subjects.append(
            Subject(
                key=key,
                name=name,
                connect=lambda echo=echo, own=environment: own_client("echo", "grpc", echo, own),  # type: ignore[misc]
                server_pid=pid,
            )
        )
    return subjects


def peer_subjects(
    case: Case,
    server: Server,
    scratch: Path,
    directory: Path,
    *,
    stack: ExitStack,
    left_out: dict[str, str],
    progress: Progress,
) -> Iterator[Subject]:
    """Peers, whose servers live as long as the stack, and this project's server asked by their client; why not goes to `left_out`."""
    environments = Environments(directory, scratch)
    bar = progress.add_task("peers", total=len(PEERS) + 1)
    for name in (*PEERS, "oip"):
        progress.update(bar, description=f"installing and starting {name}")
        try:
            yield from (
                _open_inference(case, server, scratch, environments)
                if name == "oip"
                else _peer(case, name, scratch, environments, stack)
            )
        except BenchmarkError as error:
            left_out[name] = str(error)
        progress.advance(bar)
    progress.remove_task(bar)


def _peer(case: Case, name: str, scratch: Path, environments: Environments, stack: ExitStack) -> list[Subject]:
    peer = read_peer(name)
    path = written(case, scratch, name)
    environments.python(peer.client)
    pid = stack.enter_context(environments.serving(peer, Case.read(str(path)), path))
    return [
        Subject(
            key=row.key,
            name=row.name,
            peer=True,
            connect=lambda row=row: environments.client(peer.client, row.wire, path),  # type: ignore[misc]
            server_pid=pid,
        )
        for row in peer.rows
    ]


def _open_inference(case: Case, server: Server, scratch: Path, environments: Environments) -> list[Subject]:
    path = written(case, scratch, "oip", server)
    environments.python("triton_client")
    return [
        Subject(
            key=key,
            name=name,
            peer=True,
            connect=lambda wire=wire: environments.client("triton_client", wire, path),  # type: ignore[misc]
            server_pid=server.pid,
        )
        for key, name, wire in OPEN_INFERENCE
    ]
