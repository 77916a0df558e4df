"""The peers: what each file of this package says of itself, and its server and clients as processes."""

import contextlib
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmarks
from benchmarks.case import Case
from benchmarks.client_process import Client
from benchmarks.peers.environment import environment
from benchmarks.server_process import listening_process

PEERS = ("openpi", "mlserver", "kserve", "litserve")
HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to ask a peer."""

    key: str
    """For scripts."""
    name: str
    """For people."""
    wire: str
    """Name of the client's wire."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One server and the clients that ask it."""

    name: str
    """Of its file."""
    rows: tuple[Row, ...]
    """What is measured of it."""
    client: str
    """File that holds the clients: its own where no other is named."""


def read_peer(name: str) -> Peer:
    """What the file of a peer says in its script metadata (PEP 723)."""
    said = _metadata(name)["tool"]["dst-bench"]
    rows = tuple(Row(key=key, **row) for key, row in said["rows"].items())
    return Peer(name=name, rows=rows, client=said.get("client", name))


def _metadata(name: str) -> dict[str, Any]:
    text = (HERE / f"{name}.py").read_text(encoding="utf-8")
    block = re.search(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$", text)
    assert block is not None, f"{name}.py has no script metadata"
    return tomllib.loads("".join(line[2:] for line in block["content"].splitlines(keepends=True)))


class Environments:
    """The environments of all peers below one directory.

    Args:
        directory: where they are kept.
        scratch: an empty directory for this run.
    """

    def __init__(self, directory: Path, scratch: Path) -> None:
        self._directory = directory
        # Of this project a peer sees this one package, whose files for peers need nothing else of it.
        (scratch / "benchmarks").symlink_to(Path(benchmarks.__path__[0]))
        self._variables = {"PYTHONPATH": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"}

    def python(self, name: str) -> str:
        """The Python of one file's environment, made where it is not there yet.

        Raises:
            BenchmarkError: if it cannot be made here.
        """
        return str(environment(self._directory, name, _metadata(name)["dependencies"]))

    @contextlib.contextmanager
    def serving(self, peer: Peer, case: Case, case_file: Path) -> Iterator[int]:
        """Its server on the ports of the case; gives its process id."""
        wires = {"grpc" if row.wire == "grpc" else "http" for row in peer.rows}
        command = [*self._program(peer.name), "serve", str(case_file)]
        with listening_process(
            command, ports=[case.port(wire) for wire in sorted(wires)], environment=self._variables
        ) as pid:
            yield pid

    def client(self, script: str, wire: str, case_file: Path) -> Client:
        """A client of the file `script`, not yet connected."""
        return Client([*self._program(script), "ask", wire, str(case_file)], self._variables)

    def _program(self, name: str) -> list[str]:
        # Without -P the folder of the file would be searched first, and mlserver.py be taken for MLServer.
        return [self.python(name), "-P", str(HERE / f"{name}.py")]
