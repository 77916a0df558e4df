"""dst-train: learn a policy and the law of its return in a task."""

import os
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Self

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from dst_core.checkpoint import CHECKPOINT_FILE, CONFIG_FILE, write_json
from dst_core.config import TrainConfig
from dst_core.errors import DivergedError, TrainingError
from dst_core.evaluate import Environment, evaluate, evaluation_seeds, torch_policy
from dst_core.forecast import Forecast
from dst_core.progress import TrainingProgress
from dst_core.run import Run, choose_device
from dst_core.world_model import Transition
from sim_bridge.tasks import TaskError, make_task

Array = NDArray[np.floating[Any]]
EVALUATIONS_FILE = "evaluations.json"
CURE = "lower --agent.learning-rate or look at the task's rewards and observations"
EPISODES_PER_SEED = 1_000_000
LOG_EVERY_UPDATES = 100
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
SAME_REQUEST_S = 1.0


class Interruption:
    """SIGINT and SIGTERM ask the run within this context to stop and save.

    The same request often comes twice, from the terminal and from the parent process; a signal that is repeated after a second means
    that someone will not wait, and ends the process without saving.
    """

    def __init__(self) -> None:
        self._asked: dict[int, float] = {}
        self._previous: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return bool(self._asked)

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self.ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """By the custom of shells, 128 and the number of the first signal."""
        return 128 + next(iter(self._asked))

    def ask(self, number: int, _frame: FrameType | None = None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if now - self._asked.setdefault(number, now) >= SAME_REQUEST_S:
            sys.exit(self.exit_code)


class Trainer:
    """Steps the task, updates the agent, and keeps the run on disk."""

    def __init__(
        self, run: Run, out: Path, *, interruption: Interruption, progress: TrainingProgress, log: SummaryWriter
    ) -> None:
        self.run = run
        self.out = out
        self.progress = progress
        self.log = log
        self.interruption = interruption
        self.saved_step: int = run.progress["step"]

    def train(self) -> None:
        """Run to the last step or until interrupted, and write the checkpoint.

        Raises:
            DivergedError: if a number is no longer finite; the last good checkpoint stays.
            TrainingError: if a checkpoint cannot be written; the last one stays.
        """
        config, progress = self.run.config, self.run.progress
        env = make_task(config.env, perturbations=config.perturb)
        try:
            if not progress["evaluations"]:
                self._evaluate()
            while progress["step"] < config.steps and not self.interruption:
                self._episode(env)
            if not self.interruption:
                if progress["evaluations"][-1]["step"] < progress["step"]:
                    self._evaluate()
                self._fit_forecast()
        finally:
            env.close()
        self._save()

    def _save(self) -> None:
        step = self.run.progress["step"]
        if not self.run.finite:
            raise DivergedError(f"the networks hold numbers that are not finite at step {step}; {CURE}")
        self.run.save(self.out)
        self.saved_step = step

    def _episode(self, env: Environment) -> None:
        """One episode of experience and the updates it pays for; ends early at the last step or when stopped."""
        config, progress = self.run.config, self.run.progress
        observation, _ = env.reset(seed=config.seed * EPISODES_PER_SEED + progress["episodes"])
        total, over = 0.0, False
        while not over and progress["step"] < config.steps and not self.interruption:
            action = self._explore(observation)
            following, reward, terminated, truncated, _ = env.step(action)
            transition = self._transition(observation, action, float(reward), following, terminated)
            self.run.replay.add(transition)
            self.run.agent.observe(transition)
            observation, over = following, terminated or truncated
            total += float(reward)
            progress["step"] += 1
            progress["forecast"] = False
            if progress["step"] <= config.warmup_steps:
                self._warm_up(float(reward), over)
            elif len(self.run.replay) >= config.batch:
                self._update()
            self.progress.step(progress["step"])
            if progress["step"] % config.evaluate_every == 0:
                self._evaluate()
            if progress["step"] % config.checkpoint_every == 0:
                self._save()
        progress["episodes"] += 1
        if over:
            self.progress.episode_return(total)
            self.log.add_scalar("episode/return", total, progress["step"])

    def _explore(self, observation: NDArray[np.float64]) -> NDArray[np.float32]:
        config = self.run.config
        low = np.array([channel.low for channel in self.run.contract.action], np.float32)
        high = np.array([channel.high for channel in self.run.contract.action], np.float32)
        if self.run.progress["step"] < config.warmup_steps:
            return self.run.exploration.uniform(low, high).astype(np.float32)
        action = torch_policy(self.run.agent.act, self.run.replay.device)(observation.astype(np.float32))
        noise = config.exploration * (high - low) / 2 * self.run.exploration.standard_normal(len(low))
        return np.clip(action + noise, low, high).astype(np.float32)

    def _transition(
        self, observation: Array, action: Array, reward: float, following: Array, terminated: bool
    ) -> Transition:
        rows = (observation, action, reward, following, float(terminated))
        if not all(np.isfinite(row).all() for row in rows):
            raise DivergedError(
                f"the task gave a number that is not finite at step {self.run.progress['step'] + 1}: {rows}"
            )
        return Transition(
            *(torch.as_tensor(row, dtype=torch.float32, device=self.run.replay.device)[None] for row in rows)
        )

    def _warm_up(self, reward: float, over: bool) -> None:
        """Collect rewards; at the end of the warm-up the spread of their discounted sums becomes the critics' output scale."""
        config, kept = self.run.config, self.run.progress["warmup"]
        kept["rewards"].append(reward)
        kept["ends"].append(over)
        if self.run.progress["step"] < config.warmup_steps:
            return
        running, returns = 0.0, []
        for step_reward, end in zip(reversed(kept["rewards"]), reversed(kept["ends"]), strict=True):
            running = step_reward + (0.0 if end else config.agent.discount * running)
            returns.append(running)
        scale = float(np.sqrt(np.mean(np.square(returns))))
        self.run.agent.critics.critic.return_scale.fill_(max(scale, 1e-3))
        kept["rewards"], kept["ends"] = [], []

    def _update(self) -> None:
        agent, config = self.run.agent, self.run.config
        for _ in range(config.updates_per_step):
            info = agent.update(self.run.replay.sample(config.batch, self.run.generator), self.run.generator)
            self.progress.updates += 1
            wrong = [name for name, value in info.items() if not torch.isfinite(value)]
            if wrong:
                raise DivergedError(
                    f"{', '.join(wrong)} is not finite at step {self.run.progress['step']}, update {agent.updates}; "
                    f"{CURE}"
                )
            if agent.updates % LOG_EVERY_UPDATES == 0:
                self.progress.losses(float(info["critic_loss"]), float(info["model_loss"]))
                for name, value in info.items():
                    self.log.add_scalar(f"update/{name}", float(value), self.run.progress["step"])
                self.log.add_scalar("speed/updates_per_s", self.progress.updates_per_s, self.run.progress["step"])

    def _evaluate(self) -> None:
        config, step = self.run.config, self.run.progress["step"]
        result = evaluate(
            torch_policy(self.run.agent.act, self.run.replay.device),
            environment=config.env,
            perturbations=config.perturb,
            seeds=evaluation_seeds(config.evaluation_episodes),
        )
        if not np.isfinite(result.returns).all():
            raise DivergedError(f"the evaluation at step {step} gave the returns {result.returns}; {CURE}")
        self.run.progress["evaluations"].append({"step": step, **result.summary(), "returns": list(result.returns)})
        write_json(self.out / EVALUATIONS_FILE, self.run.progress["evaluations"])
        self.progress.evaluation(step, result)
        for name, value in result.summary().items():
            self.log.add_scalar(f"evaluation/{name}", value, step)

    def _fit_forecast(self) -> None:
        """Fit the evaluation critic to the finished actor, the law that is exported."""
        run = self.run
        if run.progress["forecast"]:
            return
        updates = run.config.forecast_updates
        forecast = Forecast(run.agent.critics.critic, config=run.config.agent, updates=updates)
        for _ in self.progress.track_forecast(updates):
            if self.interruption:
                return
            transition = run.replay.sample(run.config.batch, run.generator)
            forecast.step(transition, model=run.agent.model, actor=run.agent.actor, generator=run.generator)
        run.forecast.load_state_dict(forecast.critic.state_dict())
        run.progress["forecast"] = True


def _prepare(config: TrainConfig) -> Run:
    """A new run, or the one to resume, with its configuration and a checkpoint on disk."""
    device = choose_device(config.device)
    started = (config.out / CHECKPOINT_FILE).exists()
    if started and not config.resume:
        raise TrainingError(f"{config.out} already holds a run; add --resume to continue it, or choose another --out")
    if config.resume and not started:
        raise TrainingError(f"{config.out} holds no checkpoint to resume; leave --resume out to start there")
    run = Run.start(config, device)
    if config.resume:
        run.restore(config.out)
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / CONFIG_FILE, config.to_json())
    if not config.resume:
        run.save(config.out)
    return run


def train(config: TrainConfig) -> int:
    """Train as configured.

    Returns:
        0 when finished, 130 when interrupted by SIGINT and saved, 143 by SIGTERM.

    Raises:
        TrainingError: if the run cannot start, continue or be saved.
        TaskError: if the task does not fit.
        DivergedError: if a number is no longer finite; the last good checkpoint stays.
        OSError: if the directory of the run cannot be made.
    """
    run = _prepare(config)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        log = SummaryWriter(str(config.out / "tensorboard"), purge_step=run.progress["step"] or None)
        stack.callback(log.close)
        progress = stack.enter_context(TrainingProgress(config, start=run.progress["step"]))
        trainer = Trainer(run, config.out, interruption=interruption, progress=progress, log=log)
        began = time.monotonic()
        try:
            trainer.train()
        except DivergedError as error:
            raise DivergedError(
                f"{error}. The checkpoint of step {trainer.saved_step} in {config.out} is kept"
            ) from error
        if interruption:
            progress.say(f"stopped at step {run.progress['step']} and saved; the same command with --resume goes on")
            return interruption.exit_code
        progress.say(
            f"finished {run.progress['step']} steps in {time.monotonic() - began:.0f} s; export with dst-export {config.out}"
        )
    return 0


EXAMPLES = """Learn a policy and the law of its return.

examples:
  dst-train --env InvertedPendulum-v5 --steps 20000 --seed 0 --out runs/pendulum
  dst-train --env Hopper-v5 --steps 100000 --perturb actuation=0.1 dynamics=0.01 --out runs/hopper
  dst-train --env InvertedPendulum-v5 --steps 40000 --seed 0 --out runs/pendulum --resume   (goes on, further)

One CPU thread is used unless OMP_NUM_THREADS says otherwise.
"""


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def _choose_threads() -> None:
    """One thread unless OMP_NUM_THREADS says otherwise.

    More gain little at these sizes, and threads that spin for each other stall when another process wants a core: on two
    cores with one of them busy, 8 updates a second instead of 50.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def main() -> None:
    """Entry point of `dst-train`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        config = tyro.cli(TrainConfig, prog="dst-train", description=EXAMPLES)
        _choose_threads()
        code = train(config)
    except (TrainingError, TaskError, ValueError) as error:
        print(f"dst-train: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(
            f"dst-train: {error}; choose an --out that can be written and has room. Its last checkpoint, if any, is unchanged",
            file=sys.stderr,
        )
        sys.exit(2)
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            print("dst-train: interrupted without saving; the last checkpoint, if any, is unchanged", file=sys.stderr)
        raise
    except DivergedError as error:
        print(f"dst-train: {error}", file=sys.stderr)
        sys.exit(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # all is saved; a late repetition must not change the exit code
    sys.exit(code)


if __name__ == "__main__":
    main()
