"""A conditional variational autoencoder as world model.

Encoder q(z | s, a, s', r), learned prior p(z | s, a), decoder with a learned output scale, trained on the evidence lower bound (Sohn, Lee
and Yan, "Learning structured output representation using deep conditional generative models", NeurIPS 2015). A draw takes z from the
prior and adds the decoder's own noise; both are reparameterised, so it is differentiable in s and a along fixed noise.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from dst_core.networks import ActionScale, Linearised, Standardiser, chain_product, linearised, mlp, silu
from dst_core.world_model import LearnedModel, ModelDraw, PullBack, StepFunction, Transition, unchanged
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
        self.decoder = LatentDecoder(self.given_size, latent, hidden, self.outcome_size)
        self.output_log_std = nn.Parameter(torch.full((self.outcome_size,), INITIAL_OUTPUT_LOG_STD))
        self.latent = latent
        self.noise_size = latent + self.outcome_size

    @property
    def has_closed_form(self) -> bool:
        """Whether `imagine` holds: it knows no derivatives of a step of the model's own (`base`)."""
        return self.base is unchanged

    def fit_noise(self, batch: int, generator: torch.Generator | None) -> Tensor:
        """Of the posterior's latents, (B, latent)."""
        return _normal((batch, self.latent), generator, like=self.output_log_std)

    @torch.no_grad()
    def project(self) -> None:
        """Keep the output scale within its limits; clamped inside the graph, one at a limit could not come back."""
        self.output_log_std.clamp_(LOG_STD_MIN, LOG_STD_MAX)

    def density_loss(self, transition: Transition, noise: Tensor | None) -> Tensor:
        """Negative evidence lower bound, () in nats per transition."""
        assert noise is not None
        given, outcome = self.standardised(transition)
        posterior, prior = self._posterior(given, outcome), _gaussian(self.prior(given))
        latent = posterior.mean + posterior.log_std.exp() * noise
        log_likelihood = self._decoded(given, latent).log_density(outcome)
        return (posterior.divergence(prior) - log_likelihood).mean()

    def mean_error(self, transition: Transition) -> Tensor:
        """That of the outcome decoded from the prior's mean, ()."""
        given, outcome = self.standardised(transition)
        mean: Tensor = self.decoder(given, _gaussian(self.prior(given)).mean)
        return (mean - outcome).square().sum(-1).mean()

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
        return self.draw_along(given, _normal((*given.shape[:-1], self.noise_size), generator, like=given))

    def draw_along(self, given: Tensor, noise: Tensor) -> Tensor:
        """`draw` along noise of the latent and of the output, (R, latent + S + 1)."""
        of_latent, of_outcome = noise.tensor_split([self.latent], -1)
        prior = _gaussian(self.prior(given))
        decoded = self._decoded(given, prior.mean + prior.log_std.exp() * of_latent)
        return decoded.mean + decoded.log_std.exp() * of_outcome

    def redraw(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:
        """Along a latent of the posterior and the output's noise that is left."""
        return self.redraw_along(given, outcome, self.fit_noise(len(given), generator))

    def redraw_along(self, given: Tensor, outcome: Tensor, noise: Tensor) -> Tensor:
        """`redraw` along noise of the posterior's latent, (R, latent)."""
        prior = _gaussian(self.prior(given))
        latent = self._inferred(given, outcome, noise)
        of_latent = ((latent - prior.mean) / prior.log_std.exp()).detach()
        mean = self._decoded(given, prior.mean + prior.log_std.exp() * of_latent).mean
        return outcome + (mean - mean.detach())

    @torch.no_grad()
    def _inferred(self, given: Tensor, outcome: Tensor, noise: Tensor) -> Tensor:
        posterior = self._posterior(given, outcome)
        return posterior.mean + posterior.log_std.exp() * noise

    def imagine(
        self, observation: Tensor, action: Tensor, noise: Tensor, *, blocks: Sequence[str]
    ) -> tuple[ModelDraw, PullBack]:
        """J steps from each row at once, with their derivatives in closed form: what depends on (s, a) alone is computed once per row.

        Only where `has_closed_form`.

        Args:
            observation: (B, S).
            action: (B, A).
            noise: (B, J, latent + S + 1).
            blocks: inputs to draw back to, of "action" and "state" in this order.

        Returns:
            The steps, (B, J, ...), and how cotangents of them are drawn back to the inputs.
        """
        given = self.given(observation, action)
        of_latent, of_outcome = noise.tensor_split([self.latent], -1)
        prior = linearised(self.prior, given)
        law = _gaussian(prior.value.unsqueeze(1))
        decoded, to_inputs = self._linearised(given, prior, law.mean + law.log_std.exp() * of_latent, blocks=blocks)
        raw = self.outcome.restore(decoded + self.output_log_std.exp() * of_outcome)
        outcome = self.outcome.clamp(raw)
        moved = observation.unsqueeze(1) + outcome[..., :-1]
        following = self.next_observation.clamp(moved)
        termination, by_following = self._termination(following)
        moved_freely = _within(moved, *self.next_observation.range).unsqueeze(2)
        freely = _within(raw, *self.outcome.range).unsqueeze(2)

        def pull_back(at_following: Tensor, at_reward: Tensor, at_termination: Tensor) -> Tensor:
            at_moved = (at_following + at_termination.unsqueeze(-1) * by_following) * moved_freely
            return to_inputs(at_moved, torch.cat([at_moved, at_reward.unsqueeze(-1)], -1) * freely)

        return ModelDraw(following, outcome[..., -1], termination), pull_back

    def replay(self, transition: Transition, noise: Tensor, *, blocks: Sequence[str]) -> tuple[ModelDraw, PullBack]:
        """The replayed step of each row, with its derivatives in closed form along the noise inferred behind it.

        Only where `has_closed_form`.

        Args:
            transition: B rows.
            noise: of the posterior's latents, (B, latent).
            blocks: as in `imagine`.

        Returns:
            As `imagine` with J = 1; the step ended or did not.
        """
        given, outcome = self.standardised(transition)
        latent = self._inferred(given, outcome, noise).unsqueeze(1)
        _, to_inputs = self._linearised(given, linearised(self.prior, given), latent, blocks=blocks)
        following = transition.next_observation.unsqueeze(1)
        _, by_following = self._termination(following)

        def pull_back(at_following: Tensor, at_reward: Tensor, at_termination: Tensor) -> Tensor:
            at_moved = at_following + at_termination.unsqueeze(-1) * by_following
            return to_inputs(at_moved, torch.cat([at_moved, at_reward.unsqueeze(-1)], -1))

        return ModelDraw(following, transition.reward.unsqueeze(1), transition.terminated.unsqueeze(1)), pull_back

    def _linearised(
        self, given: Tensor, prior: Linearised, latent: Tensor, *, blocks: Sequence[str]
    ) -> tuple[Tensor, Callable[[Tensor, Tensor], Tensor]]:
        """Decoded outcomes and how cotangents are drawn back to the inputs along the latents' noise.

        Args:
            given: (B, S + A).
            prior: at `given`.
            latent: (B, J, latent).
            blocks: as in `imagine`.

        Returns:
            Standardised outcomes (B, J, S + 1) without the output's noise; a function of cotangents of the next observation, (B, J, C, S),
            and of the outcome in the user's units, (B, J, C, S + 1), that gives those of the inputs, (B, J, C, D).
        """
        mean, log_std = prior.value.unsqueeze(1).chunk(2, -1)
        by_log_std = (latent - mean) * _within(log_std, LOG_STD_MIN, LOG_STD_MAX)
        trunk, trunk_slope = silu(self.decoder.first(given))
        second = self.decoder.second(trunk).unsqueeze(1) + self.decoder.latent_in(latent)
        hidden, slope = silu(second)

        def to_inputs(at_following: Tensor, at_outcome: Tensor) -> Tensor:
            at_hidden = ((at_outcome * self.outcome.std) @ self.decoder.head.weight) * slope.unsqueeze(2)
            at_mean = at_hidden @ self.decoder.latent_in.weight
            at_prior = torch.cat([at_mean, at_mean * by_log_std.unsqueeze(2)], -1)
            weights = [self._by_input(self.decoder.first.weight, blocks), self.decoder.second.weight.mT]
            into = chain_product(at_hidden.flatten(1, 2), [trunk_slope.unsqueeze(1)], weights)
            weights = [self._by_input(prior.weights[0].mT, blocks), *prior.weights[1:]]
            into = into + chain_product(at_prior.flatten(1, 2), prior.slopes, weights)
            into = into.view(*at_following.shape[:3], -1)
            if "state" not in blocks:
                return into
            by_change, by_state = into.tensor_split([into.shape[-1] - at_following.shape[-1]], -1)
            return torch.cat([by_change, by_state + at_following], -1)

        return self.decoder.head(hidden), to_inputs

    def _termination(self, following: Tensor) -> tuple[Tensor, Tensor]:
        """Probability that next observations (B, J, S) are terminal, (B, J), and its derivative by them, (B, J, 1, S)."""
        ends = linearised(self.termination, self.observation.standardise(following).flatten(0, 1))
        termination = torch.sigmoid(ends.value).view(following.shape[:2])
        slope = (termination * (1 - termination)).view(*following.shape[:2], 1, 1)
        by_following = ends.pull_back(torch.ones_like(ends.value).unsqueeze(1)).view(following.shape).unsqueeze(2)
        return termination, by_following / self.observation.std * slope

    def _by_input(self, weight: Tensor, blocks: Sequence[str]) -> Tensor:
        """Rows of a first layer's weight (H, S + A) by the inputs asked for, in their units: (D, H)."""
        by_state, by_action = weight.mT.tensor_split([len(self.observation.std)])
        into = {
            "state": by_state / self.observation.std.unsqueeze(-1),
            "action": by_action / self.action.half_range.unsqueeze(-1),
        }
        return torch.cat([into[block] for block in blocks])

    def _posterior(self, given: Tensor, outcome: Tensor) -> Gaussian:
        return _gaussian(self.encoder(torch.cat([given, outcome], -1)))

    def _decoded(self, given: Tensor, latent: Tensor) -> Gaussian:
        mean = self.decoder(given, latent)
        return Gaussian(mean, self.output_log_std.expand_as(mean))


class LatentDecoder(nn.Module):
    """Two hidden layers, the latent entering at the second one: the first runs once per (s, a), however many latents are decoded."""

    def __init__(self, given: int, latent: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(given, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.latent_in = nn.Linear(latent, hidden, bias=False)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, given: Tensor, latent: Tensor) -> Tensor:
        """Rows (R, given) and (R, latent) to (R, outputs)."""
        first = functional.silu(self.first(given))
        decoded: Tensor = self.head(functional.silu(self.second(first) + self.latent_in(latent)))
        return decoded


def _normal(shape: tuple[int, ...], generator: torch.Generator | None, *, like: Tensor) -> Tensor:
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype)


def _within(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Where clamping has a slope, as 0 or 1."""
    return ((x >= low) & (x <= high)).to(x.dtype)


def _gaussian(parameters: Tensor) -> Gaussian:
    mean, log_std = parameters.chunk(2, -1)
    return Gaussian(mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX))
