"""What every measured server and client is given: one policy, its observations, and where it is served.

Runs in the environments of peers too, so it needs the standard library alone.
"""

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Case:
    """One policy to ask, and where."""

    policy: str
    """Its name."""
    bundle: str
    """Directory of the bundle."""
    outputs: tuple[str, ...]
    """Outputs of `policy.onnx` that a full summary needs; every server is asked for all of them."""
    observations: tuple[tuple[float, ...], ...]
    """Sent in turn."""
    grpc: str = ""
    """`host:port` of the gRPC server."""
    http: str = ""
    """`host:port` of the HTTP or websocket server."""

    @property
    def model(self) -> str:
        """Path of the ONNX file."""
        return str(Path(self.bundle) / "policy.onnx")

    def port(self, wire: str) -> int:
        """Port of `grpc` or `http`."""
        address: str = getattr(self, wire)
        return int(address.rpartition(":")[2])

    def check(self, outputs: Collection[str]) -> None:
        """Raise ValueError where an answer lacks an output that was asked for."""
        if missing := set(self.outputs) - set(outputs):
            raise ValueError(f"the answer must hold all outputs asked for, missing {', '.join(sorted(missing))}")

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: str) -> Self:
        """Read it back."""
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        for name in ("outputs", "observations"):
            values[name] = tuple(tuple(item) if isinstance(item, list) else item for item in values[name])
        return cls(**values)
