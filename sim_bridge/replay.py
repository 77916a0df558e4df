"""Feeding a record to a policy server: the same actions again, or where they differ.

`dst-replay` exits 0 where every action is reproduced bit by bit, 1 where one differs, 2 where the comparison could not
be made.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray
from rich.console import Console

from protos import policy_pb2 as pb
from protos import record_pb2
from sim_bridge.client import PolicyClient
from sim_bridge.errors import RecordError, SimBridgeError
from sim_bridge.record_reader import read_record


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Replay a record against a policy server and report the first action that differs.

    Example: dst-replay run.mcap --server 127.0.0.1:50051
    """

    file: Annotated[Path, tyro.conf.Positional]
    """Record written by `dst-drive --record`."""
    server: str
    """Address of the policy server: host:port or unix:PATH."""
    policy: str = ""
    """Policy to compare with; the recorded one where not given."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One action that was not reproduced."""

    tick: int
    """Tick of the record."""
    recorded: NDArray[np.float32]
    """(A,), what the policy decided then."""
    replayed: NDArray[np.float32]
    """(A,), what it decides now."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """How a policy compares with a record."""

    run: record_pb2.Run
    """The run that was recorded."""
    policy: str
    """Policy that was asked."""
    policy_version: str
    """Its version."""
    compared: int
    """Recorded decisions that were compared."""
    different: int
    """How many of them differ in at least one bit."""
    first: Difference | None
    """The first of those."""
    largest: float
    """The largest absolute difference of any action component, in its unit."""


def replay(path: Path, client: PolicyClient, policy: str = "") -> Replay:
    """Ask the server for a decision on every recorded observation that got one, and compare the actions exactly.

    Raises:
        RecordError: if the file is no readable record of a run.
        ServerUnreachable, RequestRefused: from the server; a policy with another contract is refused.
    """
    messages = read_record(path)
    run = next(messages, None)
    if not isinstance(run, record_pb2.Run):
        raise RecordError(f"record must begin with the description of its run, got {path} without one")
    policy = policy or run.policy
    first: Difference | None = None
    version, compared, different, largest = "", 0, 0, 0.0
    for tick in messages:
        if not isinstance(tick, record_pb2.Tick) or tick.decision.status != pb.DECISION_STATUS_OK:
            continue
        answer = client.act(
            np.array(tick.observation, np.float32),
            policy=policy,
            contract=run.contract,
            detail=run.detail,
            selection=run.selection if run.HasField("selection") else None,
        )
        recorded = np.array(tick.decision.decision.action, np.float32)
        replayed = np.array(answer.decision.action, np.float32)
        version, compared = answer.policy_version, compared + 1
        if recorded.shape != replayed.shape:
            raise RecordError(f"replayed action must have shape {recorded.shape}, got {replayed.shape}")
        if recorded.tobytes() != replayed.tobytes():
            different += 1
            first = first or Difference(tick=tick.tick, recorded=recorded, replayed=replayed)
            largest = max(largest, float(np.abs(recorded - replayed).max()))
    if compared == 0:
        raise RecordError(f"record must hold at least one decision, got none in {path}")
    return Replay(
        run=run,
        policy=policy,
        policy_version=version,
        compared=compared,
        different=different,
        first=first,
        largest=largest,
    )


def report_lines(result: Replay) -> list[str]:
    """The comparison for people."""
    lines = [
        f"recorded: {result.run.policy} {result.run.policy_version[:12]}",
        f"replayed: {result.policy} {result.policy_version[:12]}",
    ]
    if result.first is None:
        return [*lines, f"all {result.compared} actions reproduced exactly"]
    lines.append(f"{result.different} of {result.compared} actions differ, by at most {result.largest:.3g}")
    lines.append(f"first at tick {result.first.tick}:")
    for channel, recorded, replayed in zip(
        result.run.action, result.first.recorded, result.first.replayed, strict=True
    ):
        lines.append(f"  {channel.name} [{channel.unit}]: recorded {recorded!s}, replayed {replayed!s}")
    return lines


def main() -> int:
    """Run the command and return its exit code."""
    config = tyro.cli(ReplayConfig, prog="dst-replay")
    output, errors = Console(highlight=False), Console(stderr=True, highlight=False)
    try:
        with PolicyClient(config.server) as client:
            client.connect()
            result = replay(config.file, client, config.policy)
    except SimBridgeError as error:
        errors.print(f"dst-replay: {error}", markup=False)
        return 2
    except KeyboardInterrupt:
        return 130
    for line in report_lines(result):
        output.print(line, markup=False, soft_wrap=True)
    return 0 if result.first is None else 1


if __name__ == "__main__":
    sys.exit(main())
