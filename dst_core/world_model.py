"""One-step stochastic world models: what every model offers, and what the learned ones share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dst_core.networks import ActionScale, Standardiser, descend, mlp

StepFunction = Callable[[Tensor, Tensor], Tensor]
"""Observation (R, S) and action (R, A) to a first guess of the next observation (R, S), differentiable in both."""


class Transition(NamedTuple):
    """Replayed transitions; `terminated` stops the bootstrap, a time limit never does."""

    observation: Tensor
    """(B, S)"""
    action: Tensor
    """(B, A) in the user's units"""
    reward: Tensor
    """(B,)"""
    next_observation: Tensor
    """(B, S)"""
    terminated: Tensor
    """(B,) 0 or 1"""


class ModelDraw(NamedTuple):
    """One imagined step for each row."""

    next_observation: Tensor
    """(R, S)"""
    reward: Tensor
    """(R,)"""
    termination: Tensor
    """(R,) probability that `next_observation` is terminal"""


class StepModel(Protocol):
    """Anything that imagines one step differentiably: a learned model or a known simulator."""

    @property
    def reward_range(self) -> tuple[Tensor, Tensor]:
        """Least and greatest reward it can give, each (); infinite where not known."""
        ...

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        """Draw the next step for rows of observation (R, S) and action (R, A), differentiable in both."""
        ...


Redraw = Callable[[Tensor, Tensor, torch.Generator | None], Tensor]
"""Like `LearnedModel.redraw`."""
PullBack = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Cotangents of next observation (B, J, C, S), reward and termination (B, J, C) to those of the inputs asked for, (B, J, C, D)."""
MEAN_WEIGHT = 10.0
"""Of the squared error of the mean outcome, in standardised units, beside the negative log-likelihood.

A likelihood with a learned scale explains rare outcomes, an impact say, as noise and then hardly learns their mean: each residual
counts by the inverse variance that was just widened for it (Seitzer et al., "On the pitfalls of heteroscedastic uncertainty
estimation with probabilistic neural networks", ICLR 2022). Where the model is sharp, the likelihood outweighs this term by far;
outcomes of several modes take longer to be told apart.
"""
TERMINATION_HIDDEN = 64  # at most: whether a state is terminal is asked once per imagined step, and has a simple border


def unchanged(observation: Tensor, action: Tensor) -> Tensor:  # noqa: ARG001 (a StepFunction)
    """The first guess that nothing moves: models then learn the change of the observation."""
    return observation


class LearnedModel(nn.Module, ABC):
    """A conditional density of the outcome (s' - base(s, a), r) given (s, a), and the chance that s' ends it all.

    Subclasses see standardised quantities only: `given`, the standardised observation and the action in [-1, 1], and
    `outcome`, standardised over the data. Arguments and results of the public methods are in the user's units.
    """

    def __init__(
        self, *, observation: Standardiser, action: ActionScale, hidden: int, base: StepFunction = unchanged
    ) -> None:
        super().__init__()
        self.observation = observation
        self.action = action
        self.base = base
        size = observation.mean.shape[0]
        self.given_size, self.outcome_size = size + action.center.shape[0], size + 1
        self.outcome = Standardiser(self.outcome_size, std_floor=1e-6)
        self.next_observation = Standardiser(size)
        narrow = min(hidden, TERMINATION_HIDDEN)
        self.termination = mlp(size, (narrow, narrow), 1)

    @abstractmethod
    def draw(self, given: Tensor, generator: torch.Generator | None) -> Tensor:
        """One reparameterised standardised outcome per row of `given`: (R, S + A) to (R, S + 1)."""

    @abstractmethod
    def redraw(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:
        """`draw` along noise inferred behind outcomes (R, S + 1): these outcomes, with derivatives by `given` (R, S + A)."""

    @abstractmethod
    def log_density(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:
        """Log-density of standardised outcomes, or a lower bound of it in expectation: (B,) nats."""

    def fit_noise(self, batch: int, generator: torch.Generator | None) -> Tensor | None:  # noqa: ARG002 (most need none)
        """The noise of one evaluation of the losses, where they need any."""
        return None

    def density_loss(self, transition: Transition, noise: Tensor | None) -> Tensor:  # noqa: ARG002
        """What training minimises, (): mean negative log-density of the standardised outcome unless a model says otherwise."""
        return -self.log_density(*self.standardised(transition), None).mean()

    def mean_error(self, transition: Transition) -> Tensor | None:  # noqa: ARG002
        """Squared error of the mean outcome, summed over its columns, mean over the batch, (); None where the model has no mean at hand."""
        return None

    @torch.no_grad()
    def project(self) -> None:
        """Bring parameters that a step of the optimiser moved beyond their limits back to them; most have none."""

    @property
    def reward_range(self) -> tuple[Tensor, Tensor]:
        """That of the data, which draws are clamped to."""
        low, high = self.outcome.range
        return low[-1], high[-1]

    @torch.no_grad()
    def observe(self, transition: Transition) -> None:
        """Take new transitions into the scales and ranges that predictions are held to."""
        self.outcome.update(self._outcome(transition))
        self.next_observation.update(transition.next_observation)

    def losses(self, transition: Transition, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Negative log-likelihood of standardised outcomes in nats per transition (or its bound), and cross-entropy of the termination.

        Args:
            transition: real transitions, B rows.
            generator: source of all noise.

        Returns:
            `model_loss` and `termination_loss`, and where the model has a mean `mean_loss`, its weighted squared error, each ().
        """
        self.project()
        return self.losses_along(transition, self.fit_noise(len(transition.reward), generator))

    def losses_along(self, transition: Transition, noise: Tensor | None) -> dict[str, Tensor]:
        """`losses` along noise that `fit_noise` gave; `project` is the caller's."""
        logit = self.termination(self.observation.standardise(transition.next_observation)).squeeze(-1)
        losses = {
            "model_loss": self.density_loss(transition, noise),
            "termination_loss": functional.binary_cross_entropy_with_logits(logit, transition.terminated),
        }
        error = self.mean_error(transition)
        return losses if error is None else {**losses, "mean_loss": MEAN_WEIGHT * error}

    @torch.no_grad()
    def log_likelihood(self, transition: Transition, generator: torch.Generator | None = None) -> Tensor:
        """Log-density of (next observation, reward) given (observation, action), in the user's units.

        A component that never varies has no density: it adds a constant that depends on the model's narrowest scale.

        Args:
            transition: real transitions, B rows; `terminated` is not judged.
            generator: source of the noise of models whose density is estimated.

        Returns:
            (B,) nats; for models whose density is a bound, not above the exact one in expectation.
        """
        return self.log_density(*self.standardised(transition), generator) - self.outcome.std.log().sum()

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        """Draw one step per row, clamped to the range of the data, differentiable in observation (R, S) and action (R, A)."""
        return self.step(observation, action, self.draw(self.given(observation, action), generator))

    def step(self, observation: Tensor, action: Tensor, drawn: Tensor) -> ModelDraw:
        """The step that a standardised outcome (R, S + 1) makes of each row."""
        outcome = self.outcome.clamp(self.outcome.restore(drawn))
        next_observation = self.next_observation.clamp(self.base(observation, action) + outcome[..., :-1])
        termination = torch.sigmoid(self.termination(self.observation.standardise(next_observation)).squeeze(-1))
        return ModelDraw(next_observation=next_observation, reward=outcome[..., -1], termination=termination)

    def given(self, observation: Tensor, action: Tensor) -> Tensor:
        """What the outcome is conditioned on: standardised observation and action in [-1, 1], (R, S + A)."""
        return torch.cat([self.observation.standardise(observation), self.action.to_unit(action)], -1)

    def standardised(self, transition: Transition) -> tuple[Tensor, Tensor]:
        """`given` (B, S + A) and standardised outcome (B, S + 1) of real transitions."""
        given = self.given(transition.observation, transition.action)
        return given, self.outcome.standardise(self._outcome(transition))

    def _outcome(self, transition: Transition) -> Tensor:
        change = transition.next_observation - self.base(transition.observation, transition.action)
        return torch.cat([change, transition.reward.unsqueeze(-1)], -1)


def fit_step(
    model: LearnedModel,
    optimiser: torch.optim.Optimizer,
    transition: Transition,
    *,
    losses_along: Callable[[Transition, Tensor | None], dict[str, Tensor]],
    max_gradient_norm: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """One step of a model's optimiser down the sum of its losses on real transitions; the losses before it, detached.

    Args:
        model: it is moved.
        optimiser: of its parameters.
        transition: B rows.
        losses_along: the model's own, compiled or not.
        max_gradient_norm: gradients are scaled down to it.
        generator: source of all noise.
    """
    model.project()
    losses = losses_along(transition, model.fit_noise(len(transition.reward), generator))
    descend(optimiser, torch.stack(list(losses.values())).sum(), max_gradient_norm=max_gradient_norm)
    return {name: loss.detach() for name, loss in losses.items()}


class ReplayedSteps:
    """Replayed transitions as the steps of a learned model: their values, with the derivatives along noise that the model infers.

    So nothing that the model has wrong enters the values, and what it is asked for is what no replay holds. The inference is that of
    stochastic value gradients (Heess et al., "Learning continuous control policies by stochastic value gradients", NIPS 2015).

    Args:
        model: infers and differentiates.
        transition: R rows.
        redraw: in place of the model's own.
    """

    def __init__(self, model: LearnedModel, transition: Transition, *, redraw: Redraw | None = None) -> None:
        self.model = model
        self.transition = transition
        self.redraw = redraw or model.redraw

    @property
    def reward_range(self) -> tuple[Tensor, Tensor]:
        """That of the model."""
        return self.model.reward_range

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        """The replayed steps, differentiable in the observation (R, S) and the action (R, A) that they were made from."""
        model, real = self.model, self.transition
        _, outcome = model.standardised(real)
        redrawn = model.outcome.restore(self.redraw(model.given(observation, action), outcome, generator))
        moved = model.base(observation, action) + redrawn[..., :-1]
        following = _with_slope(real.next_observation, moved)
        ends = torch.sigmoid(model.termination(model.observation.standardise(following)).squeeze(-1))
        return ModelDraw(following, _with_slope(real.reward, redrawn[..., -1]), _with_slope(real.terminated, ends))


def _with_slope(value: Tensor, like: Tensor) -> Tensor:
    """The value with the derivatives of another."""
    return value + (like - like.detach())
