"""`dst-drive`: drive a robot with a served policy.

Exit codes: 0 done, 2 refused before moving, 3 record or report incomplete, 4 server lost, 5 stopped by the guard in at least one episode,
130 Ctrl-C, 143 SIGTERM. Where several apply: a signal before 4, 4 before 5, 5 before 3.
"""

import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import tyro
from rich.console import Console
from rich.logging import RichHandler

from protos import policy_pb2 as pb
from protos import record_pb2
from protos.codec import channels_to_proto
from sim_bridge import display
from sim_bridge.client import PolicyClient
from sim_bridge.clock import MonotonicClock
from sim_bridge.contract_check import contract_differences, same_perturbations
from sim_bridge.control_loop import ControlLoop, EpisodeResult, LoopConfig
from sim_bridge.control_session import ControlSession
from sim_bridge.errors import ContractMismatchError, DriveConfigError, SimBridgeError
from sim_bridge.guard import Guard, GuardConfig
from sim_bridge.mujoco_robot import MujocoRobot
from sim_bridge.pauses import short_interpreter_pauses
from sim_bridge.record import Recorder
from sim_bridge.report import drive_report, write_report

logger = logging.getLogger(__name__)

EXIT_REFUSED = 2
EXIT_NOT_SAVED = 3
EXIT_SERVER_LOST = 4
EXIT_GUARD_STOPPED = 5
RULES = {"best-mean": pb.RULE_BEST_MEAN, "best-cvar": pb.RULE_BEST_CVAR}
CANDIDATES = range(2, 257)
DETAILS = {"none": pb.DETAIL_NONE, "summary": pb.DETAIL_SUMMARY, "samples": pb.DETAIL_SAMPLES}
EXAMPLES = """Drive a simulated robot with a served policy.

Examples:
  dst-drive --server 127.0.0.1:50051 --env InvertedPendulum-v5 --episodes 5
  dst-drive --server unix:/run/policy.sock --env Hopper-v5 --perturb actuation=0.1 dynamics=0.01 --realtime
  dst-drive --server 127.0.0.1:50051 --env Hopper-v5 --rate 100 --record run.mcap --report run.json
  dst-drive --server 127.0.0.1:50051 --env Hopper-v5 --selection best-cvar --candidates 32

Exit codes: 0 done, 2 refused before moving, 3 record or report incomplete, 4 server lost,
5 stopped by the guard in at least one episode, 130 Ctrl-C, 143 SIGTERM."""


@dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """What to drive, with which policy, and what to keep of it."""

    server: str
    """Address of the policy server: host:port or unix:PATH."""
    env: str
    """Gymnasium id of the robot's task."""
    episodes: int = 1
    """How many episodes to drive."""
    perturb: tuple[str, ...] = ()
    """What disturbs the task, as name=scale, in any order: actuation (noise, of half the action range), observation
    (noise, relative), dynamics (kicks, m/s and rad/s), friction, mass, gravity (a factor within 1 +- scale per
    episode), dropout (probability per sensor and tick), delay (whole control periods)."""
    seed: int = 0
    """Seed of the first episode; each later one has the next number."""
    realtime: bool = False
    """Pace the ticks by the control period; otherwise each tick follows the last at once."""
    rate: float | None = None
    """Pace the ticks at this many Hz in place of the control period; implies --realtime."""
    budget_s: float | None = None
    """Seconds within which a tick's decision must be there; the period of the ticks where not given."""
    hold_timeout_s: float = 0.5
    """Seconds without a good decision after which the guard stops the robot."""
    record: Path | None = None
    """New MCAP file for the record of the run."""
    report: Path | None = None
    """JSON file for the numbers of the run."""
    policy: str = ""
    """Which policy to ask; may be left out where the server has loaded exactly one."""
    detail: Literal["none", "summary", "samples"] = "summary"
    """How much uncertainty each decision carries."""
    selection: Literal["actor", "best-mean", "best-cvar"] = "actor"
    """How actions are picked: the actor's, or of candidates around it the one whose return is best by its mean or by
    the mean of its worst share (careful)."""
    candidates: int = 16
    """Among how many actions a selection picks, the actor's included, 2 to 256."""
    name: str = ""
    """What the operator's page calls this robot; the host's name where not given."""

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise DriveConfigError(f"--episodes must be at least 1, got {self.episodes}")
        if self.seed < 0:
            raise DriveConfigError(f"--seed must be 0 or more, got {self.seed}")
        for option, value in (("--rate", self.rate), ("--budget-s", self.budget_s)):
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise DriveConfigError(f"{option} must be a finite number > 0, got {value}")
        if self.candidates not in CANDIDATES:
            raise DriveConfigError(
                f"--candidates must be {CANDIDATES.start} to {CANDIDATES.stop - 1}, got {self.candidates}"
            )
        GuardConfig(hold_timeout_s=self.hold_timeout_s)
        if self.report is not None and not self.report.absolute().parent.is_dir():
            raise DriveConfigError(f"--report must be in an existing directory, got {self.report}")


class Interruption:
    """Remembers the signal that asks the run to end, so that no tick is cut in half."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take over Ctrl-C and SIGTERM within this block; a second Ctrl-C ends at once."""
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number


def drive(config: DriveConfig, console: Console) -> int:
    """Drive as configured, print and write what came of it, and return the exit code.

    Raises:
        SimBridgeError: if the run is refused before the robot moved.
    """
    interruption = Interruption()
    with ExitStack() as stack:
        robot = MujocoRobot(config.env, perturbations=config.perturb)
        stack.callback(robot.close)
        client = stack.enter_context(PolicyClient(config.server))
        client.connect()
        description = client.describe(config.policy)
        check_contract(robot, description, console)
        if not description.calibrated:
            display.print_uncalibrated(console, description.policy)
        if not same_perturbations(config.perturb, description.perturbations):
            display.print_other_perturbations(console, config.perturb, description)
        loop_config = loop_config_of(config, robot.contract.control_period_s)
        recorder = None
        if config.record is not None:
            recorder = Recorder(config.record)
            stack.callback(recorder.close)
            recorder.write("/run", run_message(config, loop_config, robot, description), MonotonicClock().now_ns())
        session = stack.enter_context(
            client.control(
                policy=description.policy,
                robot=robot_name(config),
                contract=description.contract,
                detail=DETAILS[config.detail],
                selection=selection_of(config),
            )
        )
        loop = ControlLoop(
            robot=robot,
            decisions=session,
            guard=Guard(robot.contract.action, robot.neutral_action, GuardConfig(hold_timeout_s=config.hold_timeout_s)),
            clock=MonotonicClock(),
            config=loop_config,
            record=None if recorder is None else lambda tick: recorder.write("/tick", tick, tick.started_ns),
        )
        stack.enter_context(interruption.listening())
        stack.enter_context(short_interpreter_pauses())
        results, server_lost = run_episodes(
            config=config,
            loop=loop,
            session=session,
            recorder=recorder,
            interruption=interruption,
            console=console,
        )
        session.close()
        if recorder is not None:
            recorder.close()
        report = drive_report(
            episodes=results,
            statistics=loop.statistics,
            policy=description.policy,
            policy_version=description.policy_version,
            calibrated=description.calibrated,
            dropped_records=recorder.dropped if recorder is not None else 0,
            stale_replies=session.stale_replies,
            reconnects=session.reconnects,
        )
        display.print_report(console, report)
        saved = recorder is None or not recorder.failure
        if config.report is not None:
            try:
                write_report(report, config.report)
            except OSError as error:
                logger.warning("report not written to %s: %s", config.report, error.strerror)
                saved = False
    if interruption.signal is not None:
        return 128 + interruption.signal
    if server_lost:
        return EXIT_SERVER_LOST
    if loop.statistics.stops:
        return EXIT_GUARD_STOPPED
    return os.EX_OK if saved else EXIT_NOT_SAVED


def robot_name(config: DriveConfig) -> str:
    """What people call this robot."""
    return config.name or socket.gethostname()


def selection_of(config: DriveConfig) -> pb.Selection | None:
    """How the server is to pick the actions, or None for the actor's."""
    if config.selection == "actor":
        return None
    return pb.Selection(rule=RULES[config.selection], candidates=config.candidates)


def check_contract(robot: MujocoRobot, description: pb.DescribeResponse, console: Console) -> None:
    """Refuse a policy that means something else by its numbers.

    Raises:
        ContractMismatchError: after the differences were printed.
    """
    differences = contract_differences(robot.contract, description)
    if differences:
        display.print_differences(console, differences)
        raise ContractMismatchError(
            f"policy {description.policy!r} must fit the robot, got {len(differences)} differences; "
            f"it was trained on {description.environment}, the robot is {robot.contract.environment}"
        )
    if description.environment != robot.contract.environment:
        logger.warning(
            "policy %s was trained on %s, the robot is %s; their contracts agree",
            description.policy,
            description.environment,
            robot.contract.environment,
        )


def loop_config_of(config: DriveConfig, control_period_s: float) -> LoopConfig:
    """How the ticks are paced."""
    period_s = control_period_s if config.rate is None else 1.0 / config.rate
    return LoopConfig(
        tick_period_s=period_s,
        budget_s=config.budget_s or period_s,
        realtime=config.realtime or config.rate is not None,
    )


def run_message(
    config: DriveConfig, loop_config: LoopConfig, robot: MujocoRobot, description: pb.DescribeResponse
) -> record_pb2.Run:
    """The head of the record."""
    return record_pb2.Run(
        environment=robot.contract.environment,
        perturbations=config.perturb,
        robot=robot_name(config),
        server=config.server,
        policy=description.policy,
        policy_version=description.policy_version,
        contract=description.contract,
        observation=channels_to_proto(robot.contract.observation),
        action=channels_to_proto(robot.contract.action),
        control_period_s=robot.contract.control_period_s,
        tick_period_s=loop_config.tick_period_s,
        budget_s=loop_config.budget_s,
        realtime=loop_config.realtime,
        detail=DETAILS[config.detail],
        seed=config.seed,
        description=description,
        selection=selection_of(config),
    )


def run_episodes(
    *,
    config: DriveConfig,
    loop: ControlLoop,
    session: ControlSession,
    recorder: Recorder | None,
    interruption: Interruption,
    console: Console,
) -> tuple[list[EpisodeResult], bool]:
    """Drive the episodes; returns their results and whether the run ended because the server was lost."""
    results: list[EpisodeResult] = []
    with display.live_progress(console, loop, config.episodes):
        for episode in range(config.episodes):
            result = loop.run_episode(
                episode=episode, seed=config.seed + episode, interrupted=lambda: bool(interruption)
            )
            results.append(result)
            display.print_episode(console, loop, result, config.episodes)
            if recorder is not None:
                recorder.write("/episode", episode_message(episode, result), MonotonicClock().now_ns())
            if result.guard_stopped and not session.connected:
                logger.error("policy server lost: %s", loop.statistics.guard_reason)
                return results, True
            if interruption:
                break
    return results, False


def episode_message(episode: int, result: EpisodeResult) -> record_pb2.Episode:
    """The end of an episode, for the record."""
    return record_pb2.Episode(
        episode=episode,
        seed=result.seed,
        steps=result.steps,
        episode_return=result.episode_return,
        guard_stopped=result.guard_stopped,
    )


def main() -> int:
    """Run the command and return its exit code."""
    output = Console(highlight=False)
    errors = Console(stderr=True, highlight=False)
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=errors, show_path=False)]
    )
    try:
        config = tyro.cli(
            DriveConfig,
            prog="dst-drive",
            description=EXAMPLES,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        return drive(config, output)
    except SimBridgeError as error:
        errors.print(f"dst-drive: {error}", markup=False, soft_wrap=True)
        return EXIT_REFUSED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
