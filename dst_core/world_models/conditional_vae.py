"""A conditional variational autoencoder as world model.

Encoder q(z | s, a, s', r), learned prior p(z | s, a), decoder with a learned output scale, trained on the evidence lower bound (Sohn, Lee
and Yan, "Learning structured output representation using deep conditional generative models", NeurIPS 2015). A draw takes z from the
prior and adds the decoder's own noise; both are reparameterised, so it is differentiable in s and a along fixed noise.
"""

import math

import torch
from torch import Tensor, nn

from dst_core.networks import ActionScale, Standardiser, mlp
from dst_core.world_model import LearnedModel, StepFunction, Transition, unchanged
from dst_core.world_models.gaussian import LOG_STD_MAX, LOG_STD_MIN, Gaussian

# A decoder that starts sharp has to use the latent; one that starts wide explains modes away as noise.
INITIAL_OUTPUT_LOG_STD = -1.5
LIKELIHOOD_DRAWS = 64


class ConditionalVae(LearnedModel):
    """Outcomes of any law that `latent` numbers and Gaussian noise can express."""

    def __init__(
        self,
        *,
        observation: Standardiser,
        action: ActionScale,
        hidden: int,
        latent: int,
        base: StepFunction = unchanged,
    ) -> None:
        super().__init__(observation=observation, action=action, hidden=hidden, base=base)
        self.encoder = mlp(self.given_size + self.outcome_size, (hidden, hidden), 2 * latent)
        self.prior = mlp(self.given_size, (hidden, hidden), 2 * latent)
        self.decoder = mlp(self.given_size + latent, (hidden, hidden), self.outcome_size)
        self.output_log_std = nn.Parameter(torch.full((self.outcome_size,), INITIAL_OUTPUT_LOG_STD))

    def density_loss(self, transition: Transition, generator: torch.Generator | None) -> Tensor:
        """Negative evidence lower bound, () in nats per transition."""
        with torch.no_grad():
            # Projected, not clamped inside the graph: a scale at its limit must be able to come back.
            self.output_log_std.clamp_(LOG_STD_MIN, LOG_STD_MAX)
        given, outcome = self.standardised(transition)
        posterior, prior = self._posterior(given, outcome), _gaussian(self.prior(given))
        log_likelihood = self._decoded(given, posterior.draw(generator)).log_density(outcome)
        return (posterior.divergence(prior) - log_likelihood).mean()

    def log_density(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:
        """Importance-weighted lower bound with `LIKELIHOOD_DRAWS` draws (Burda, Grosse and Salakhutdinov, ICLR 2016, equation 8), (B,)."""
        given, outcome = (rows.expand(LIKELIHOOD_DRAWS, *rows.shape) for rows in (given, outcome))
        posterior, prior = self._posterior(given, outcome), _gaussian(self.prior(given))
        latent = posterior.draw(generator)
        log_weight = (
            self._decoded(given, latent).log_density(outcome)
            + prior.log_density(latent)
            - posterior.log_density(latent)
        )
        return log_weight.logsumexp(0) - math.log(LIKELIHOOD_DRAWS)

    def draw(self, given: Tensor, generator: torch.Generator | None) -> Tensor:
        """A latent from the prior, decoded, with the decoder's own noise."""
        return self._decoded(given, _gaussian(self.prior(given)).draw(generator)).draw(generator)

    def _posterior(self, given: Tensor, outcome: Tensor) -> Gaussian:
        return _gaussian(self.encoder(torch.cat([given, outcome], -1)))

    def _decoded(self, given: Tensor, latent: Tensor) -> Gaussian:
        mean = self.decoder(torch.cat([given, latent], -1))
        return Gaussian(mean, self.output_log_std.expand_as(mean))


def _gaussian(parameters: Tensor) -> Gaussian:
    mean, log_std = parameters.chunk(2, -1)
    return Gaussian(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))
