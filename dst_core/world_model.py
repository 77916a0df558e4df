"""One-step stochastic world model: a conditional variational autoencoder of (s' - s, r) given (s, a), and the chance that s' ends it all.

Encoder q(z | s, a, s', r), learned prior p(z | s, a), decoder with a learned output scale, trained on the evidence lower bound (Sohn, Lee
and Yan, "Learning structured output representation using deep conditional generative models", NeurIPS 2015). A draw takes z from the
prior and adds the decoder's own noise; both are reparameterised, so it is differentiable in s and a along fixed noise.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from dst_core.networks import ActionScale, Standardiser, mlp

LOG_STD_MIN, LOG_STD_MAX = -7.0, 2.0
INITIAL_OUTPUT_LOG_STD = (
    -1.5
)  # a decoder that starts sharp has to use the latent; one that starts wide explains modes away as noise


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


class Gaussian(NamedTuple):
    """A diagonal Gaussian."""

    mean: Tensor
    log_std: Tensor

    def draw(self, generator: torch.Generator | None) -> Tensor:
        """One reparameterised draw per row."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.log_std.exp() * noise

    def divergence(self, other: "Gaussian") -> Tensor:
        """Kullback-Leibler divergence from `other` to self, summed over the last axis."""
        ratio = (self.mean - other.mean) / other.log_std.exp()
        log_ratio = self.log_std - other.log_std
        return 0.5 * ((2 * log_ratio).exp() + ratio.square() - 1 - 2 * log_ratio).sum(-1)


class ConditionalVae(nn.Module):
    """The learned `StepModel`. Networks see standardised quantities; arguments and results are in the user's units."""

    def __init__(self, *, observation: Standardiser, action: ActionScale, hidden: int, latent: int) -> None:
        super().__init__()
        self.observation = observation
        self.action = action
        size = observation.mean.shape[0]
        given, outcome = size + action.center.shape[0], size + 1
        self.outcome = Standardiser(outcome, std_floor=1e-6)
        self.next_observation = Standardiser(size)
        self.encoder = mlp(given + outcome, (hidden, hidden), 2 * latent)
        self.prior = mlp(given, (hidden, hidden), 2 * latent)
        self.decoder = mlp(given + latent, (hidden, hidden), outcome)
        self.output_log_std = nn.Parameter(torch.full((outcome,), INITIAL_OUTPUT_LOG_STD))
        self.termination = mlp(size, (hidden, hidden), 1)

    @property
    def reward_range(self) -> tuple[Tensor, Tensor]:
        """That of the data, which draws are clamped to."""
        low, high = self.outcome.range
        return low[-1], high[-1]

    @torch.no_grad()
    def observe(self, transition: Transition) -> None:
        """Take new transitions into the scales and ranges that predictions are held to."""
        self.outcome.update(_outcome(transition))
        self.next_observation.update(transition.next_observation)

    def losses(self, transition: Transition, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Negative evidence lower bound in nats per transition, and cross-entropy of the termination.

        Args:
            transition: real transitions, B rows.
            generator: source of the encoder's noise.

        Returns:
            `negative_elbo` and `termination`, each ().
        """
        with torch.no_grad():
            # Projected, not clamped inside the graph: a scale at its limit must be able to come back.
            self.output_log_std.clamp_(LOG_STD_MIN, LOG_STD_MAX)
        given = self._given(transition.observation, transition.action)
        outcome = self.outcome.standardise(_outcome(transition))
        posterior = _gaussian(self.encoder(torch.cat([given, outcome], -1)))
        prior = _gaussian(self.prior(given))
        decoded = self.decoder(torch.cat([given, posterior.draw(generator)], -1))
        log_std = self.output_log_std
        error = (outcome - decoded) / log_std.exp()
        log_likelihood = -(0.5 * error.square() + log_std + 0.5 * torch.log(torch.tensor(2 * torch.pi))).sum(-1)
        logit = self.termination(self.observation.standardise(transition.next_observation)).squeeze(-1)
        return {
            "negative_elbo": (posterior.divergence(prior) - log_likelihood).mean(),
            "termination": functional.binary_cross_entropy_with_logits(logit, transition.terminated),
        }

    def sample(self, observation: Tensor, action: Tensor, generator: torch.Generator | None = None) -> ModelDraw:
        """Draw one step per row, clamped to the range of the data, differentiable in observation (R, S) and action (R, A)."""
        given = self._given(observation, action)
        latent = _gaussian(self.prior(given)).draw(generator)
        decoded = self.decoder(torch.cat([given, latent], -1))
        log_std = self.output_log_std.expand_as(decoded)
        outcome = self.outcome.clamp(self.outcome.restore(Gaussian(decoded, log_std).draw(generator)))
        next_observation = self.next_observation.clamp(observation + outcome[..., :-1])
        termination = torch.sigmoid(self.termination(self.observation.standardise(next_observation)).squeeze(-1))
        return ModelDraw(next_observation=next_observation, reward=outcome[..., -1], termination=termination)

    def _given(self, observation: Tensor, action: Tensor) -> Tensor:
        return torch.cat([self.observation.standardise(observation), self.action.to_unit(action)], -1)


def _outcome(transition: Transition) -> Tensor:
    """What the model predicts: change of observation and reward, (B, S + 1)."""
    return torch.cat([transition.next_observation - transition.observation, transition.reward.unsqueeze(-1)], -1)


def _gaussian(parameters: Tensor) -> Gaussian:
    mean, log_std = parameters.chunk(2, -1)
    return Gaussian(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))
