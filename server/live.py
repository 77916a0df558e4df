"""The last minute of every robot session, for the operator's page: bounded memory, one cursor per viewer."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb
from protos.codec import FloatArray
from server.core import Core
from server.errors import OverloadedError
from server.http_messages import calibration_reply
from server.question import Clock
from server.row_layout import RowLayout
from server.runtime import Detail
from server.served_policy import Decision, ServedPolicy

HISTORY_S = 60.0
"""How much of a session is kept, and how long a finished session stays visible."""
HISTORY_TICKS = 6000
"""Most ticks kept of one session: the history at 100 Hz."""
MAX_SESSIONS = 64
MAX_VIEWERS = 16
EVENT_PERIOD_S = 0.1
ENCODE_AT_ONCE = 16
"""Ticks turned into text before other work gets the event loop."""
TIMINGS = ("queue_ms", "inference_ms", "round_trip_ms")
GUARDS = frozenset(pb.GuardState.values())
OBSERVATION_GRADIENT = "observation_gradient_mean"


def _columns(layout: RowLayout) -> tuple[dict[str, slice | int], int]:
    """Where a row of a session's history holds what, a slice for a vector, an index for a scalar; and its width.

    It begins with the timings and goes on as a decision's row does, up to what is too wide to keep.
    """
    columns: dict[str, slice | int] = {name: index for index, name in enumerate(TIMINGS)}
    width = len(TIMINGS)
    for name, place in layout.places.items():
        if name == OBSERVATION_GRADIENT:
            break
        start, width = len(TIMINGS) + place.start, len(TIMINGS) + place.stop
        columns[name] = slice(start, width) if layout.shapes[name] else start
    return columns, width


class LiveSession:
    """One robot's session: counters and a ring of its latest ticks. A number is NaN where nothing was asked."""

    def __init__(self, *, session: str, robot: str, policy: ServedPolicy, opened_ns: int) -> None:
        manifest = policy.manifest
        self.session = session
        self.robot = robot
        self.policy = manifest.name
        self.policy_version = manifest.version
        self.opened_ns = opened_ns
        self.closed_ns: int | None = None
        self.late_ticks = 0
        self.rejected = 0
        self.superseded = 0
        self.episode = 0
        self.episode_return = 0.0
        self.guard = "UNSPECIFIED"
        self.guard_reason = ""
        self.ticks = 0
        """Decisions made so far; also the cursor of the next row."""
        self._round_trip_ms = math.nan
        self._columns, width = _columns(policy.runtime.layouts[Detail.SUMMARY])
        self._observation_gradient: FloatArray | None = None
        """Of the latest tick alone: too wide to keep a minute of."""
        self._capacity = min(HISTORY_TICKS, math.ceil(HISTORY_S / manifest.control_period_s) + 1)
        # Pages of a fresh array are taken from the machine only when they are written.
        self._rows: NDArray[np.float32] = np.empty((self._capacity, width), np.float32)
        self._times_s = np.empty(self._capacity)
        self._tick_numbers = np.empty(self._capacity, np.uint64)
        self._guards: list[str] = [""] * self._capacity

    def report(self, status: pb.RobotStatus) -> int:
        """Takes over what the robot says of its previous tick; returns how many late ticks are new."""
        self.guard = (
            pb.GuardState.Name(status.guard).removeprefix("GUARD_STATE_") if status.guard in GUARDS else "UNKNOWN"
        )
        self.guard_reason = status.guard_reason[:200]
        self.episode = status.episode
        self.episode_return = status.episode_return
        self._round_trip_ms = status.round_trip_ns / 1e6 if status.round_trip_ns > 0 else math.nan
        new = max(0, status.late_ticks - self.late_ticks)
        self.late_ticks += new
        return new

    def record(self, tick: int, decision: Decision, received_ns: int) -> None:
        """Adds one served decision."""
        slot = self.ticks % self._capacity
        row, first = self._rows[slot], len(TIMINGS)
        row[:first] = (decision.queue_ns / 1e6, decision.inference_ns / 1e6, self._round_trip_ms)
        kept = min(len(row) - first, decision.layout.width)
        row[first : first + kept] = decision.row[:kept]
        row[first + kept :] = math.nan
        gradient = decision.layout.places.get(OBSERVATION_GRADIENT)
        self._observation_gradient = None if gradient is None else decision.row[gradient]
        self._times_s[slot] = (received_ns - self.opened_ns) / 1e9
        self._tick_numbers[slot] = tick
        self._guards[slot] = self.guard
        self.ticks += 1

    def first(self, cursor: int, now_ns: int) -> int:
        """The first row at or after `cursor` that is still kept and at most `HISTORY_S` old."""
        start = max(cursor, self.ticks - self._capacity, 0)
        oldest = (now_ns - self.opened_ns) / 1e9 - HISTORY_S
        while start < self.ticks and self._times_s[start % self._capacity] < oldest:
            start += 1
        return start

    def sample(self, index: int) -> dict[str, Any]:
        """Row `index`, counted since the session was opened, as JSON values."""
        slot = index % self._capacity
        row = [None if math.isnan(value) else _rounded(value) for value in self._rows[slot].tolist()]
        values = {"return_quantiles_corrected": [], **{name: row[place] for name, place in self._columns.items()}}
        identity = {"tick": int(self._tick_numbers[slot]), "t": round(float(self._times_s[slot]), 4)}
        return {**identity, **values, "guard": self._guards[slot]}

    def state(self, now_ns: int) -> dict[str, Any]:
        """Identity and counters as JSON values."""
        end = now_ns if self.closed_ns is None else self.closed_ns
        return {
            "session": self.session,
            "robot": self.robot,
            "policy": self.policy,
            "policy_version": self.policy_version,
            "connected": self.closed_ns is None,
            "connected_s": round((end - self.opened_ns) / 1e9, 3),
            "ticks": self.ticks,
            "late_ticks": self.late_ticks,
            "rejected": self.rejected,
            "superseded": self.superseded,
            "episode": self.episode,
            "episode_return": self.episode_return if math.isfinite(self.episode_return) else None,
            "guard": self.guard,
            "guard_reason": self.guard_reason,
            "observation_gradient_mean": None
            if self._observation_gradient is None
            else [_rounded(value) for value in self._observation_gradient.tolist()],
        }


class Live:
    """All sessions to show, and the events that viewers follow."""

    def __init__(self, core: Core, *, clock: Clock = time.monotonic_ns, event_period_s: float = EVENT_PERIOD_S) -> None:
        self.grpc_address = ""
        """Where robots reach the native service; set once it is bound."""
        self._core = core
        self._clock = clock
        self._started_ns = clock()
        self._event_period_s = event_period_s
        self._sessions: dict[str, LiveSession] = {}
        self._viewers = 0
        self._closing = asyncio.Event()

    def open(self, *, session: str, robot: str, policy: ServedPolicy) -> LiveSession:
        """Begins to keep a session; forgets the session that finished first where `MAX_SESSIONS` are kept.

        Raises:
            OverloadedError: as many are connected.
        """
        if len(self._sessions) >= MAX_SESSIONS:
            finished = [live for live in self._sessions.values() if live.closed_ns is not None]
            if not finished:
                raise OverloadedError(
                    f"{MAX_SESSIONS} control sessions are open, the most this server accepts; close one or try later",
                    retry_after_ms=1000,
                )
            del self._sessions[min(finished, key=lambda live: live.closed_ns or 0).session]
        live = LiveSession(session=session, robot=robot, policy=policy, opened_ns=self._clock())
        self._sessions[session] = live
        return live

    def finish(self, live: LiveSession) -> None:
        """Marks a session as disconnected; it fades after `HISTORY_S`."""
        live.closed_ns = self._clock()

    def _forget_faded(self, now_ns: int) -> None:
        faded = [
            name
            for name, live in self._sessions.items()
            if live.closed_ns is not None and (now_ns - live.closed_ns) / 1e9 > HISTORY_S
        ]
        for name in faded:
            del self._sessions[name]

    def close(self) -> None:
        """Ends all viewers' events."""
        self._closing.set()

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events for one viewer: first the history, then what is new about ten times a second.

        A slow viewer is simply asked for less often: nothing is kept for it but its cursors.

        Raises:
            OverloadedError: `MAX_VIEWERS` are connected.
        """
        if self._viewers >= MAX_VIEWERS:
            raise OverloadedError(f"{MAX_VIEWERS} viewers are connected; close one", retry_after_ms=1000)
        self._viewers += 1
        try:
            cursors: dict[str, int] = {}
            while not self._closing.is_set():
                yield b"data: " + (await self._event(cursors)).encode() + b"\n\n"
                try:
                    await asyncio.wait_for(self._closing.wait(), self._event_period_s)
                except TimeoutError:
                    continue
        finally:
            self._viewers -= 1

    async def _event(self, cursors: dict[str, int]) -> str:
        """One event; moves the cursors of its viewer."""
        robots, reached = [], {}
        async for session, cursor, text in self.robots(cursors):
            reached[session] = cursor
            robots.append(text)
        cursors.clear()
        cursors.update(reached)
        policies = list(self._core.policies.values())
        server = {
            "uptime_s": round((self._clock() - self._started_ns) / 1e9, 3),
            "provider": policies[0].runtime.provider if policies else "",
            "grpc": self.grpc_address,
            "policies": [described(policy) for policy in policies],
        }
        return f'{{"server": {json.dumps(server, allow_nan=False)}, "robots": [{", ".join(robots)}]}}'

    async def robots(self, cursors: Mapping[str, int]) -> AsyncIterator[tuple[str, int, str]]:
        """Session, next cursor and JSON text of every robot, with its rows from its cursor on.

        Gives way to other work while it encodes.
        """
        now_ns = self._clock()
        self._forget_faded(now_ns)
        for live in list(self._sessions.values()):
            state = json.dumps(live.state(now_ns), allow_nan=False)
            end = live.ticks
            start = live.first(cursors.get(live.session, 0), now_ns)
            samples: list[str] = []
            while start < end:
                stop = min(start + ENCODE_AT_ONCE, end)
                samples += [json.dumps(live.sample(index), allow_nan=False) for index in range(start, stop)]
                await asyncio.sleep(0)
                # The ring went on turning meanwhile; rows it has overwritten are skipped.
                start = live.first(stop, now_ns)
            yield live.session, end, f'{state[:-1]}, "samples": [{", ".join(samples)}]}}'


def described(policy: ServedPolicy) -> dict[str, Any]:
    """What the page must know of a policy, as JSON values."""
    manifest = policy.manifest
    calibration = calibration_reply(manifest.calibration)
    return {
        "name": manifest.name,
        "version": manifest.version,
        "environment": manifest.task.environment,
        "calibrated": manifest.calibration is not None,
        "calibration": None if calibration is None else calibration.model_dump(),
        "control_period_s": manifest.control_period_s,
        "return_quantile_levels": manifest.uncertainty.return_quantile_levels,
        "cvar_level": manifest.uncertainty.cvar_level,
        "return_threshold": manifest.uncertainty.return_threshold,
        "gradient_norm_levels": manifest.uncertainty.gradient_norm_levels,
        "action": [channel.name for channel in policy.action],
        "action_units": [channel.unit for channel in policy.action],
        "observation": [channel.name for channel in policy.observation],
        "observation_std": manifest.normalisation.observation_std,
    }


def _rounded(value: float) -> float:
    """To as many digits as a page draws."""
    return float(f"{value:.6g}")
