"""The loop of a training run: a step of the task, the updates it pays for, and what falls due after it."""

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dst_core.critic_bias import critic_bias
from dst_core.critic_learner import CriticLearner
from dst_core.early_warning import EarlyWarning
from dst_core.episode import Environment, NotDeterministicError, Step, episode_seed
from dst_core.errors import DivergedError
from dst_core.evaluate import evaluate, evaluation_seeds, torch_policy
from dst_core.evaluation_critic import fit_evaluation_critic
from dst_core.execution import EAGER, Execution, choose_execution, keep_compiled_code, sheltered, using_threads
from dst_core.interruption import Interruption
from dst_core.metrics import Metrics
from dst_core.model_quality import held_out, model_quality
from dst_core.progress import TrainingProgress
from dst_core.run import Run
from dst_core.world_model import LearnedModel, StepFunction, Transition
from dst_core.world_models.choice import known_step
from sim_bridge.tasks import make_task

VIDEOS_DIRECTORY = "videos"
CURE = (
    "lower --agent.learning-rate, and --agent.critic-learning-rate where it is given, "
    "or look at the task's rewards and observations"
)
LOG_EVERY_UPDATES = 100
OUT_OF_RANGE = "returns_out_of_range"


class Trainer:
    """Steps the task, updates the agent, and keeps the run on disk.

    Args:
        run: where to go on from.
        out: directory of the run.
        interruption: whether to stop.
        progress: for people.
        metrics: for programs.
    """

    def __init__(
        self,
        run: Run,
        out: Path,
        *,
        interruption: Interruption,
        progress: TrainingProgress,
        metrics: Metrics,
    ) -> None:
        self.run = run
        self.out = out
        self.interruption = interruption
        self.progress = progress
        self.metrics = metrics
        self.truth: StepFunction | None = None
        self.early_warning = EarlyWarning(run.progress["early_warning"])
        self.saved_step: int = run.progress["step"]
        self.execution = EAGER
        self.uncompiled = 0
        self.unread: list[dict[str, Tensor]] = []
        self.read_every = LOG_EVERY_UPDATES if run.replay.device.type == "cuda" else 1

    def train(self) -> None:
        """Run to the last step or until interrupted, and write the checkpoint.

        Raises:
            DivergedError: if a number is no longer finite; the last good checkpoint stays.
            TrainingError: if a checkpoint cannot be written; the last one stays.
        """
        self.execution = self._choose_execution()
        if self.run.progress["step"] >= self.run.config.warmup_steps:
            self.run.agent.prepare(self.execution)
        with using_threads(self.execution.threads):
            self._train()

    def _choose_execution(self) -> Execution:
        """How updates are computed: chosen once per run, since a run that goes on otherwise rounds otherwise."""
        config, progress = self.run.config, self.run.progress
        if not progress["execution"]:
            execution = choose_execution(
                compile_updates=config.compile if config.agent.algorithm == "dst" else "off",
                precision=config.precision if config.agent.algorithm == "dst" else "float32",
                threads=config.threads,
                updates=(config.steps - config.warmup_steps) * config.updates_per_step + config.forecast_updates,
                rows=config.batch * config.agent.samples,
                width=config.agent.hidden,
                device=self.run.replay.device,
            )
            progress["execution"] = dataclasses.asdict(execution)
            self.metrics.write("execution", progress["step"], **progress["execution"])
        execution = Execution.kept(progress["execution"], device=self.run.replay.device)
        if progress["execution"]["compiled"] and not execution.compiled:
            self._warn(
                "this run was compiled, here is no C++ compiler (g++ or clang++): it goes on eager, with other rounding"
            )
        if execution.compiled:
            keep_compiled_code()
            self.uncompiled = self.run.config.agent.actor_delay
        self.progress.execution(execution)
        return execution

    def _train(self) -> None:
        config, progress = self.run.config, self.run.progress
        env = make_task(config.env, perturbations=config.perturb)
        self.truth = known_step(env)
        try:
            if self.run.episode.under_way:
                self._reach_episode_again(env)
            if progress["evaluation_due"]:
                self._evaluate()
            while progress["step"] < config.steps and not self.interruption:
                self._step(env)
            if not self.interruption and progress["evaluations"][-1]["step"] < progress["step"]:
                self._evaluate()
            if not self.interruption:
                self._fit_forecast()
        finally:
            env.close()
        self._save()

    def _reach_episode_again(self, env: Environment) -> None:
        try:
            self.run.episode.reach_again(env, self._episode_seed())
        except NotDeterministicError as error:
            self._warn(str(error))

    def _episode_seed(self) -> int:
        return episode_seed(self.run.config.seed, self.run.progress["episodes"])

    def _warn(self, message: str) -> None:
        self.progress.say(f"warning: {message}")
        self.metrics.write("warning", self.run.progress["step"], message=message)

    def _save(self) -> None:
        self._require_finite()
        self.run.progress["early_warning"] = self.early_warning.state()
        self.run.progress["metrics_size"] = self.metrics.size
        self.run.save(self.out)
        self.saved_step = self.run.progress["step"]

    def _require_finite(self) -> None:
        """Look at the losses not yet read and at the parameters, so that what diverged is named and not what it led to.

        Raises:
            DivergedError: if one is not finite.
        """
        self._read()
        self._require_finite_parameters()

    def _require_finite_parameters(self) -> None:
        if wrong := self.run.not_finite:
            which = f"{wrong[0]} and {len(wrong) - 1} more parameters are" if len(wrong) > 1 else f"{wrong[0]} is"
            raise DivergedError(f"{which} not finite {self._when()}; {CURE}")

    def _when(self, update: int | None = None) -> str:
        return f"at step {self.run.progress['step']}, update {self.run.agent.updates if update is None else update}"

    def _step(self, env: Environment) -> None:
        """One step of the task, and what falls due after it."""
        config, progress, episode = self.run.config, self.run.progress, self.run.episode
        began_s = time.process_time()
        if not episode.under_way:
            episode.begin(env, self._episode_seed())
        step = episode.step(env, self._explore(episode.observation))
        progress["step"] += 1
        progress["forecast"] = False
        transition = self._transition(step)
        self.run.replay.add(transition)
        self.run.agent.observe(transition)
        if progress["step"] <= config.warmup_steps:
            self._warm_up(step)
            if len(self.run.replay) >= config.batch:
                self._learn_model()
            if progress["step"] == config.warmup_steps:  # before it, compiling would cost more than it saves
                self.run.agent.prepare(self.execution)
        elif len(self.run.replay) >= config.batch:
            self._update()
        if step.over:
            self.progress.episode_return(episode.reward_sum)
            self.metrics.write("episode", progress["step"], **{"return": episode.reward_sum, "length": episode.length})
            progress["episodes"] += 1
            episode.end()
        self.progress.step(progress["step"])
        progress["cpu_seconds"] += time.process_time() - began_s
        if progress["step"] % config.evaluate_every == 0:
            self._evaluate()
        if progress["step"] % config.checkpoint_every == 0:
            self._save()

    def _explore(self, observation: NDArray[np.floating]) -> NDArray[np.float32]:
        config = self.run.config
        low = np.array([channel.low for channel in self.run.contract.action], np.float32)
        high = np.array([channel.high for channel in self.run.contract.action], np.float32)
        if self.run.progress["step"] < config.warmup_steps:
            return self.run.exploration.uniform(low, high).astype(np.float32)
        action = self._act(observation.astype(np.float32))
        noise = config.exploration * (high - low) / 2 * self.run.exploration.standard_normal(len(low))
        return np.clip(action + noise, low, high).astype(np.float32)

    def _act(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        """The actor's action without noise, (A,) for (S,); no task is stepped with one that is no number."""
        action = torch_policy(self.run.agent.act, self.run.replay.device)(observation)
        if not np.isfinite(action).all():
            self._require_finite_of_task("observation", observation)
            self._require_finite()
            raise DivergedError(f"the actor's action is not finite {self._when()}: {action}; {CURE}")
        return action

    def _require_finite_of_task(self, name: str, row: NDArray[np.floating] | float) -> None:
        if not np.isfinite(row).all():
            raise DivergedError(
                f"the task's {name} is not finite {self._when()}: {row}; look at the task, or limit its actions"
            )

    def _transition(self, step: Step) -> Transition:
        rows: dict[str, Any] = {
            "observation": step.observation,
            "action": step.action,
            "reward": step.reward,
            "next observation": step.following,
        }
        for name, row in rows.items():
            self._require_finite_of_task(name, row)
        values = (*rows.values(), float(step.terminated))
        return Transition(
            *(torch.as_tensor(value, dtype=torch.float32, device=self.run.replay.device)[None] for value in values)
        )

    def _warm_up(self, step: Step) -> None:
        """Collect rewards; at the end of the warm-up the spread of their discounted sums becomes the critics' output scale."""
        config, kept = self.run.config, self.run.progress["warmup"]
        kept["rewards"].append(step.reward)
        kept["ends"].append(step.over)
        if self.run.progress["step"] < config.warmup_steps:
            return
        running, returns = 0.0, []
        for reward, end in zip(reversed(kept["rewards"]), reversed(kept["ends"]), strict=True):
            running = reward + (0.0 if end else config.agent.discount * running)
            returns.append(running)
        scale = float(np.sqrt(np.mean(np.square(returns))))
        if scale == 0:
            self.progress.say(
                f"no reward in the {config.warmup_steps} steps of the warm-up: returns are taken to be of order 1; "
                "raise --warmup-steps if rewards are sparse"
            )
        self.run.agent.critics.critic.return_scale.fill_(max(scale, 1e-3) if scale else 1.0)
        kept["rewards"], kept["ends"] = [], []

    def _learn_model(self) -> None:
        """As many steps of the world model as of everything later: critics that met a fresh one would learn gradients of nothing first."""
        agent, config = self.run.agent, self.run.config
        for _ in range(config.updates_per_step if agent.critics.uses_model else 0):
            agent.update_model(self.run.replay.sample(config.batch, self.run.generator), self.run.generator)

    def _update(self) -> None:
        agent, config = self.run.agent, self.run.config
        for _ in range(config.updates_per_step):
            transition = self.run.replay.sample(config.batch, self.run.generator)
            with sheltered(self.progress.updates < self.uncompiled):
                self.unread.append(agent.update(transition, self.run.generator))
            self.progress.updates += 1
            if self.progress.updates == self.uncompiled:
                self.progress.compiled()
                self.uncompiled = 0
            if len(self.unread) >= self.read_every:
                self._read()

    def _read(self) -> None:
        """Look at what the last updates reported; on a GPU, which would have to be waited for, at many of them at once."""
        if not self.unread:
            return
        numbers = iter(torch.stack([value for info in self.unread for value in info.values()]).tolist())
        reports = [dict(zip(info, numbers, strict=False)) for info in self.unread]
        first = self.run.agent.updates - len(reports) + 1
        self.unread.clear()
        for update, values in enumerate(reports, first):
            if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
                raise DivergedError(f"{', '.join(wrong)} is not finite {self._when(update)}; {CURE}")
            if OUT_OF_RANGE in values and (early := self.early_warning.update(values[OUT_OF_RANGE])):
                self._warn(early)
            if update % LOG_EVERY_UPDATES == 0:
                self._require_finite_parameters()
                self._log_update(update, values)

    def _log_update(self, update: int, values: dict[str, float]) -> None:
        self.progress.losses(values["critic_loss"], values.get("model_loss"))
        self.metrics.write(
            "update",
            self.run.progress["step"],
            **values,
            updates=update,
            updates_per_s=round(self.progress.updates_per_s, 1),
        )

    def _evaluate(self) -> None:
        """Episodes on held-out seeds, and how far critics and world model agree with them; draws nothing from the run's noise.

        One that is interrupted is due when the run is resumed.
        """
        self._require_finite()
        config, agent, step = self.run.config, self.run.agent, self.run.progress["step"]
        result = evaluate(
            self._act,
            environment=config.env,
            perturbations=config.perturb,
            seeds=evaluation_seeds(config.evaluation_episodes),
            video=self.out / VIDEOS_DIRECTORY / f"step-{step}.mp4" if config.video else None,
            interrupted=lambda: bool(self.interruption),
        )
        self.run.progress["evaluation_due"] = result is None
        if result is None:
            return
        if not np.isfinite(result.returns).all():
            raise DivergedError(f"the evaluation {self._when()} gave the returns {result.returns}; {CURE}")
        noise = self.run.noise("evaluation")
        bias = critic_bias(
            result.trajectories, returns=agent.critics.returns, discount=config.agent.discount, generator=noise
        )
        values = result.summary()
        if bias is not None:
            values |= {"critic_bias": bias.mean, "critic_bias_std": bias.std}
        if agent.critics.uses_model and isinstance(agent.model, LearnedModel):
            transition = held_out(result.trajectories, self.run.replay.device)
            values |= model_quality(agent.model, transition, generator=noise, truth=self.truth)
        self.run.progress["evaluations"].append({"step": step, **values, "returns": list(result.returns)})
        spent = {"updates": agent.updates, "cpu_seconds": round(self.run.progress["cpu_seconds"], 6)}
        self.metrics.write("evaluation", step, **values, returns=result.returns, **spent)
        self.progress.evaluation(step, result, bias)

    def _fit_forecast(self) -> None:
        """Fit the evaluation critic to the finished actor, the law that is exported; an interrupted fit begins anew.

        Other algorithms than DST learn no such law: their runs end here and are not exported.
        """
        if self.run.progress["forecast"] or not isinstance(self.run.agent.critics, CriticLearner):
            return
        self._save()  # the fit takes minutes
        fit_evaluation_critic(
            self.run,
            updates=self.run.config.forecast_updates,
            execution=self.execution,
            progress=self.progress,
            metrics=self.metrics,
            interrupted=lambda: bool(self.interruption),
        )
