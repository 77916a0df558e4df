"""The agent: its parts, and the order in which one update moves them."""

import torch
from torch import Tensor, nn

from dst_core.actor import Actor, objective
from dst_core.agent_config import AgentConfig
from dst_core.algorithms import make_learner
from dst_core.critic_learner import CriticLearner
from dst_core.execution import EAGER, Execution
from dst_core.networks import ActionScale, Standardiser, descend, polyak, target_of
from dst_core.targets import return_range
from dst_core.world_model import LearnedModel, StepModel, Transition, fit_step
from dst_core.world_models.choice import make_world_model
from dst_core.world_models.conditional_vae import ConditionalVae
from sim_bridge.tasks.perturbations import Environment

DIVERGENCE_MARGIN = (
    0.1  # of the width of the range of returns; a law that ends at the range's edge spreads a little beyond it
)


class Agent(nn.Module):
    """World model, critics and deterministic actor, learned from replay in the manner of Dyna.

    Args:
        config: the choices.
        action_low: (A,) least action.
        action_high: (A,) greatest action.
        observation_size: S.
        env: the task, needed by world models that know it: hybrid and simulator.

    Raises:
        TaskError: if the task is not one that the chosen world model can know.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        action_low: Tensor,
        action_high: Tensor,
        observation_size: int,
        env: Environment | None = None,
    ) -> None:
        super().__init__()
        self.observation = Standardiser(observation_size)
        self.reward = Standardiser(1)
        self.action = ActionScale(action_low, action_high)
        self.actor = Actor(observation=self.observation, action=self.action, hidden=config.hidden)
        self.target_actor = target_of(self.actor)
        self.model: StepModel = make_world_model(config, observation=self.observation, action=self.action, env=env)
        self.critics = make_learner(config, observation=self.observation, action=self.action, policy=self.actor.forward)
        self.actor_optimiser = torch.optim.Adam(self.actor.parameters(), lr=config.learning_rate, fused=True)
        self.model_optimiser = (
            torch.optim.Adam(self.model.parameters(), lr=config.learning_rate, fused=True)
            if isinstance(self.model, LearnedModel) and self.critics.uses_model
            else None
        )
        self.config = config
        self.updates = 0
        self.prepare(EAGER)

    def prepare(self, execution: Execution) -> None:
        """Compute updates from now on as `execution` says: those of DST; the other algorithms and world models stay eager."""
        self._execution = execution
        own = isinstance(self.model, ConditionalVae) and self.model.has_closed_form
        self._model_losses = (execution if own else EAGER).prepare(self.model_losses_along)
        self._climb = execution.prepare(self.climb_along)
        if isinstance(self.critics, CriticLearner):
            self.critics.prepare(execution)

    @property
    def optimisers(self) -> dict[str, torch.optim.Optimizer]:
        """Those of actor, critics and, where one is learned, world model."""
        both: dict[str, torch.optim.Optimizer] = {"actor": self.actor_optimiser, "critic": self.critics.optimiser}
        return both if self.model_optimiser is None else {**both, "model": self.model_optimiser}

    @torch.no_grad()
    def act(self, observation: Tensor) -> Tensor:
        """Deterministic action, (A,) for (S,), in the user's units."""
        action: Tensor = self.actor(observation)
        return action

    def observe(self, transition: Transition) -> None:
        """Take a real transition into the scales of the networks."""
        self.observation.update(transition.observation)
        self.reward.update(transition.reward.unsqueeze(-1))
        if isinstance(self.model, LearnedModel):
            self.model.observe(transition)

    def update(self, transition: Transition, generator: torch.Generator) -> dict[str, Tensor]:
        """One update of world model and critics, every `actor_delay`-th also of the actor.

        Returns:
            Scalars for the log, still on the device. A non-finite one is for the caller to stop at.
        """
        self._execution.begin_update()
        self.updates += 1
        info = self.update_model(transition, generator)
        info |= self.critics.step(transition, model=self.model, actor=self.target_actor, generator=generator)
        if self.updates % self.config.actor_delay == 0:
            info |= self.update_actor(transition, generator)
            polyak(self.target_actor, self.actor, self.config.polyak)
        return {name: value.clone() for name, value in info.items()}

    def update_model(self, transition: Transition, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the world model on real transitions, where one is learned; returns its losses."""
        if self.model_optimiser is None or not isinstance(self.model, LearnedModel):
            return {}
        return fit_step(
            self.model,
            self.model_optimiser,
            transition,
            losses_along=self._model_losses,
            max_gradient_norm=self.config.max_gradient_norm,
            generator=generator,
        )

    def update_actor(self, transition: Transition, generator: torch.Generator) -> dict[str, Tensor]:
        """One step of the actor up the critics' samples.

        Returns:
            `actor_objective` in units of reward, and `returns_out_of_range`: the share of the critics' samples at the actor's own
            actions that lies clearly beyond the returns that the rewards seen allow, the early sign of divergence; 0 while all rewards
            seen were zero, which say nothing about the size of returns.
        """
        learner = self.critics
        if isinstance(learner, CriticLearner):
            noise = learner.critic.draw_noise(len(transition.reward), learner.samples, generator)
            value, outside = self._climb(transition.observation, noise)
        else:
            returns = learner.returns(transition.observation, self.actor(transition.observation), generator)
            value, outside = self._judged(returns)
        descend(
            self.actor_optimiser, -value / learner.critic.return_scale, max_gradient_norm=self.config.max_gradient_norm
        )
        return {"actor_objective": value.detach(), "returns_out_of_range": outside}

    def model_losses_along(self, transition: Transition, noise: Tensor | None) -> dict[str, Tensor]:
        """The world model's losses."""
        assert isinstance(self.model, LearnedModel)
        return self.model.losses_along(transition, noise)

    def climb_along(self, observation: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """What the actor climbs and how much of the law is out of range, along noise of a generative critic (E, B, N, noise)."""
        assert isinstance(self.critics, CriticLearner)
        return self._judged(self.critics.returns_along(observation, self.actor(observation), noise))

    def _judged(self, returns: Tensor) -> tuple[Tensor, Tensor]:
        value = objective(returns, risk=self.config.risk, risk_level=self.config.risk_level).mean()
        low, high = return_range((self.reward.low[0], self.reward.high[0]), self.config.discount)
        margin = DIVERGENCE_MARGIN * (high - low)
        outside = ((returns < low - margin) | (returns > high + margin)) & (high > low)
        return value, outside.to(value.dtype).mean()
