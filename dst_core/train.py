"""dst-train: learn a policy and the law of its return in a task."""

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from types import FrameType
from typing import NoReturn

import tyro

from dst_core.checkpoint import CHECKPOINT_FILE, CONFIG_FILE, write_json
from dst_core.config import TrainConfig
from dst_core.errors import DivergedError, TrainingError
from dst_core.evaluate_critic import FLAG, evaluate_critic, parse_evaluate_critic
from dst_core.interruption import Interruption
from dst_core.metrics import Metrics
from dst_core.presets import PRESETS, choices_of_preset, chosen_env, preset_of
from dst_core.progress import TrainingProgress
from dst_core.run import Run, choose_device
from dst_core.trainer import Trainer
from dst_core.video import require_rendering
from sim_bridge.tasks import TaskError

DIVERGED_DIRECTORY = "diverged"
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
DESCRIPTION = f"""Learn a policy and the law of its return.

examples:
  dst-train --env InvertedPendulum-v5 --steps 20000 --seed 0 --out runs/pendulum
  dst-train --env Hopper-v5 --steps 100000 --perturb actuation=0.1 dynamics=0.01 --video --out runs/hopper
  dst-train --env InvertedPendulum-v5 --steps 40000 --seed 0 --out runs/pendulum --resume   (goes on, further)
  dst-train --evaluate-critic --out runs/pendulum --forecast-updates 4000   (fits the evaluation critic of a finished run again)
  dst-train --env Hopper-v5 --help   (with the defaults of this task)

Tasks with a preset, their own defaults, which every flag overrides: {", ".join(sorted(PRESETS))}.

Names for --perturb: actuation (noise, in half action ranges), observation (noise, relative: 0.2 is U[0.8, 1.2]), dynamics (kicks in m/s
and rad/s per step), friction, mass, gravity (a factor within 1 +- scale, drawn per episode), dropout (probability per sensor and step),
delay (whole control periods).

Sources named below: DST, the paper, Debes and Tuytelaars, arXiv 2601.20071; TD3, Fujimoto et al., arXiv 1802.09477; TQC,
Kuznetsov et al., arXiv 2005.04269; MAGE, D'Oro and Jaskowski, arXiv 2004.14309; IQN, Dabney et al., arXiv 1806.06923; MMDQ, learning
return samples by MMD, Nguyen-Tang et al., arXiv 2007.12354, here DST without gradients and model; PETS, Chua et al., arXiv 1805.12114;
NSF, neural spline flows, Durkan et al., arXiv 1906.04032; DDPG, Lillicrap et al., arXiv 1509.02971; SVG, Heess et al.,
arXiv 1510.09142; Gretton et al., "A kernel two-sample test", JMLR 2012; Rockafellar and Uryasev, "Optimization of conditional
value-at-risk", 2000. Values that no source gives are this project's.

Long runs of dst compile their updates (--compile): the first one takes up to a minute, later runs load what it made.
"""


def train(config: TrainConfig) -> int:
    """Train as configured.

    Returns:
        0 when finished, 130 when interrupted by SIGINT and saved, 143 by SIGTERM.

    Raises:
        TrainingError: if the run cannot start, continue or be saved.
        TaskError: if the task does not fit.
        DivergedError: if a number is no longer finite; the last good checkpoint stays, and what diverged lies beside it.
        OSError: if the directory of the run cannot be made.
    """
    run = _prepare(config)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        metrics = Metrics(config.out, step=run.progress["step"], size=run.progress["metrics_size"])
        stack.callback(metrics.close)
        progress = stack.enter_context(TrainingProgress(config, start=run.progress["step"]))
        trainer = Trainer(run, config.out, interruption=interruption, progress=progress, metrics=metrics)
        began = time.monotonic()
        try:
            trainer.train()
        except DivergedError as error:
            raise DivergedError(
                f"{error}. The checkpoint of step {trainer.saved_step} in {config.out} is kept; {_keep_diverged(run, config)}"
            ) from error
        if interruption:
            progress.say(f"stopped at step {run.progress['step']} and saved; the same command with --resume goes on")
            return interruption.exit_code
        export = f"; export with dst-export {config.out}" if run.progress["forecast"] else ""
        progress.say(f"finished {run.progress['step']} steps in {time.monotonic() - began:.0f} s{export}")
    return 0


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
    if config.video:
        require_rendering(config.env, config.perturb)
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / CONFIG_FILE, config.to_json())
    if not config.resume:
        run.save(config.out)
    return run


def _keep_diverged(run: Run, config: TrainConfig) -> str:
    """Save what diverged for inspection; returns the words about it."""
    directory = config.out / DIVERGED_DIRECTORY
    try:
        directory.mkdir(exist_ok=True)
        write_json(directory / CONFIG_FILE, config.to_json())
        run.save(directory)
    except (OSError, TrainingError) as error:
        return f"the diverged state could not be saved: {error}"
    return f"the diverged state is in {directory} for inspection"


def parse_arguments(arguments: Sequence[str]) -> TrainConfig:
    """The configuration of a command line: its flags, else the preset of its task, else the plain defaults.

    Raises:
        ValueError: if a choice is outside its range.
    """
    env = chosen_env(arguments)
    if env is None:
        return tyro.cli(TrainConfig, prog="dst-train", description=DESCRIPTION, args=arguments)
    return tyro.cli(TrainConfig, prog="dst-train", description=DESCRIPTION, args=arguments, default=preset_of(env))


def _run(arguments: Sequence[str]) -> int:
    if FLAG in arguments:
        return evaluate_critic(parse_evaluate_critic(arguments))
    config = parse_arguments(arguments)
    if preset := choices_of_preset(config):
        print(f"preset of {config.env}:", *(f"{flag} {value}" for flag, value in preset.items()), flush=True)
    return train(config)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def main() -> None:
    """Entry point of `dst-train`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    try:
        code = _run(sys.argv[1:])
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
