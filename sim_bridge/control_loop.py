"""The control loop: observe, request, guard, apply, record, at absolute monotonic ticks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protos import policy_pb2 as pb
from protos import record_pb2
from sim_bridge.clock import Clock
from sim_bridge.clock_offset import ClockOffset
from sim_bridge.control_session import Outcome, Reply
from sim_bridge.errors import DriveConfigError
from sim_bridge.guard import Guard, GuardState, Proposal, Verdict
from sim_bridge.robot import Robot, StepResult
from sim_bridge.round_trips import RoundTrips

GUARD_STATES = {
    GuardState.NOMINAL: pb.GUARD_STATE_NOMINAL,
    GuardState.HOLD: pb.GUARD_STATE_HOLD,
    GuardState.STOP: pb.GUARD_STATE_STOP,
}
NOT_IN_TIME = {Outcome.LATE, Outcome.LOST, Outcome.EXPIRED, Outcome.SUPERSEDED, Outcome.OVERLOADED}


class DecisionSource(Protocol):
    """Where decisions come from; a `ControlSession` is one."""

    def decide(
        self, *, tick: int, observation: NDArray[np.floating], deadline_ns: int, status: pb.RobotStatus
    ) -> Reply:
        """The decision for one observation, at the deadline at the latest."""

    @property
    def clock_offset(self) -> ClockOffset | None:
        """The source's clock against this one."""

    @property
    def session(self) -> str:
        """Names the session; another name after a loss means that the server counts from zero again."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How the loop is paced."""

    tick_period_s: float
    """Seconds between two ticks."""
    budget_s: float
    """Seconds after the start of a tick within which its decision must be there."""
    realtime: bool
    """Wait for each tick's time; otherwise the next tick follows at once."""

    def __post_init__(self) -> None:
        for name in ("tick_period_s", "budget_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise DriveConfigError(f"{name} must be a finite number > 0, got {value}")


@dataclass(kw_only=True)
class LoopStatistics:
    """What happened so far, over all episodes."""

    ticks: int = 0
    late_ticks: int = 0
    overruns: int = 0
    hold_ticks: int = 0
    stops: int = 0
    running_ns: int = 0
    selected_ticks: int = 0
    departed_ticks: int = 0
    gain_sum: float = 0.0
    round_trips: RoundTrips = field(default_factory=RoundTrips)
    guard: GuardState = GuardState.NOMINAL
    guard_reason: str = ""


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """One episode, whole or interrupted."""

    seed: int
    """Seed of task and noise."""
    episode_return: float
    """Undiscounted sum of rewards."""
    steps: int
    """Applied actions."""
    guard_stopped: bool
    """Whether the guard ended it."""
    interrupted: bool
    """Whether a person ended it."""


class ControlLoop:
    """Drives one robot with one source of decisions.

    A decision that is not there within the budget makes the tick late: the guard then decides what is applied. Ticks
    are due at the episode's start plus whole periods, so that no delay adds up; a tick whose work is not done when the
    next is due is an overrun, and after an overrun of whole periods the ticks missed are left out, not hurried through.
    """

    def __init__(
        self,
        *,
        robot: Robot,
        decisions: DecisionSource,
        guard: Guard,
        clock: Clock,
        config: LoopConfig,
        record: Callable[[record_pb2.Tick], None] | None = None,
    ) -> None:
        self._robot = robot
        self._decisions = decisions
        self._guard = guard
        self._clock = clock
        self._period_ns = round(config.tick_period_s * 1e9)
        self._budget_ns = round(config.budget_s * 1e9)
        self._realtime = config.realtime
        self._record = record
        self.statistics = LoopStatistics()
        self.episode = 0
        self.episode_return = 0.0
        self._last_round_trip_ns = 0
        self._session = ""
        self._late_before_session = 0

    def run_episode(self, *, episode: int, seed: int, interrupted: Callable[[], bool]) -> EpisodeResult:
        """Drive until the task ends, the guard stops or `interrupted` says so; then the robot gets its neutral action.

        The guard is re-armed at the start. After an interruption the result holds what happened until then.
        """
        self.episode, self.episode_return = episode, 0.0
        self._robot.reset(seed)
        self._guard.rearm()
        statistics, clock = self.statistics, self._clock
        statistics.guard, statistics.guard_reason = GuardState.NOMINAL, ""
        steps = 0
        ended = stopped = False
        began_ns = scheduled_ns = clock.now_ns()
        while not (ended or stopped or interrupted()):
            if self._realtime:
                clock.sleep_until_ns(scheduled_ns)
            result, verdict = self._tick(scheduled_ns, seed)
            steps += 1
            ended, stopped = result.terminated or result.truncated, verdict.state is GuardState.STOP
            scheduled_ns = self._next_tick_ns(scheduled_ns)
        if not ended and not stopped:
            self._robot.apply(self._robot.neutral_action)
        statistics.stops += stopped
        statistics.running_ns += clock.now_ns() - began_ns
        return EpisodeResult(
            seed=seed,
            episode_return=self.episode_return,
            steps=steps,
            guard_stopped=stopped,
            interrupted=not ended and not stopped,
        )

    def _tick(self, scheduled_ns: int, seed: int) -> tuple[StepResult, Verdict]:
        statistics, clock = self.statistics, self._clock
        tick = statistics.ticks + 1
        observation = self._robot.observe()
        started_ns = clock.now_ns()
        deadline_ns = started_ns + self._budget_ns
        reply = self._decisions.decide(
            tick=tick, observation=observation, deadline_ns=deadline_ns, status=self._status()
        )
        applied_ns = clock.now_ns()
        verdict = self._guard.update(applied_ns, proposal_of(reply, deadline_ns))
        result = self._robot.apply(verdict.action)

        late = reply.outcome in NOT_IN_TIME or applied_ns > deadline_ns
        statistics.ticks = tick
        statistics.late_ticks += late
        statistics.hold_ticks += verdict.state is GuardState.HOLD
        statistics.guard, statistics.guard_reason = verdict.state, verdict.reason
        if reply.decision is not None:
            statistics.round_trips.add(reply.round_trip_ns)
            self._count_selected(reply.decision.decision)
        self._last_round_trip_ns = reply.round_trip_ns
        self.episode_return += result.reward
        if self._record is not None:
            self._record(
                self._tick_message(
                    tick=tick,
                    seed=seed,
                    times_ns=(scheduled_ns, started_ns, applied_ns),
                    observation=observation,
                    reply=reply,
                    late=late,
                    verdict=verdict,
                    result=result,
                )
            )
        return result, verdict

    def _count_selected(self, decision: pb.Decision) -> None:
        if decision.HasField("selected"):
            self.statistics.selected_ticks += 1
            self.statistics.departed_ticks += decision.selected.index > 0
            self.statistics.gain_sum += decision.selected.gain

    def _next_tick_ns(self, scheduled_ns: int) -> int:
        due_ns = scheduled_ns + self._period_ns
        now_ns = self._clock.now_ns()
        if not self._realtime:
            return now_ns
        if now_ns > due_ns:
            missed = (now_ns - due_ns) // self._period_ns
            self.statistics.overruns += 1 + missed
            due_ns += missed * self._period_ns
        return due_ns

    def _status(self) -> pb.RobotStatus:
        statistics, session = self.statistics, self._decisions.session
        if session != self._session:
            self._session, self._late_before_session = session, statistics.late_ticks
        return pb.RobotStatus(
            guard=GUARD_STATES[statistics.guard],
            guard_reason=statistics.guard_reason,
            round_trip_ns=self._last_round_trip_ns,
            late_ticks=statistics.late_ticks - self._late_before_session,
            episode=self.episode,
            episode_return=self.episode_return,
        )

    def _tick_message(
        self,
        *,
        tick: int,
        seed: int,
        times_ns: tuple[int, int, int],
        observation: NDArray[np.floating],
        reply: Reply,
        late: bool,
        verdict: Verdict,
        result: StepResult,
    ) -> record_pb2.Tick:
        scheduled_ns, started_ns, applied_ns = times_ns
        offset = self._decisions.clock_offset
        return record_pb2.Tick(
            tick=tick,
            episode=self.episode,
            seed=seed,
            scheduled_ns=scheduled_ns,
            started_ns=started_ns,
            applied_ns=applied_ns,
            observation=observation.tolist(),
            decision=reply.decision,
            problem=reply.problem,
            late=late,
            round_trip_ns=reply.round_trip_ns,
            applied_action=verdict.action.tolist(),
            guard=GUARD_STATES[verdict.state],
            guard_reason=verdict.reason,
            reward=result.reward,
            terminated=result.terminated,
            truncated=result.truncated,
            clock_offset_ns=offset.offset_ns if offset else 0,
            clock_offset_error_ns=offset.error_ns if offset else 0,
        )


def proposal_of(reply: Reply, deadline_ns: int) -> Proposal:
    """What the guard is offered: the decided action until the earlier of the server's limit and the robot's own."""
    decision = reply.decision
    if reply.outcome is not Outcome.OK or decision is None:
        return Proposal(action=None, valid_until_ns=deadline_ns, problem=f"{reply.outcome.value}: {reply.problem}")
    return Proposal(action=decision.decision.action, valid_until_ns=min(decision.valid_until_ns, deadline_ns))
