"""An ensemble of Gaussian networks as world model: PETS.

Chua, Calandra, McAllister and Levine, "Deep reinforcement learning in a handful of trials using probabilistic dynamics
models", NeurIPS 2018. Each member gives mean and scale of a Gaussian and learns from its own bootstrap of the data;
where data are scarce the members disagree. A member has a single mode: of a step with two modes it learns mean and
spread.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from dst_core.networks import ActionScale, EnsembleLinear, Standardiser
from dst_core.world_model import LearnedModel, StepFunction, Transition, unchanged
from dst_core.world_models.gaussian import LOG_STD_MAX, LOG_STD_MIN, Gaussian

MEMBERS = 5


class GaussianEnsemble(LearnedModel):
    """A uniform mixture of Gaussian networks."""

    bootstrap: Tensor

    def __init__(
        self,
        *,
        observation: Standardiser,
        action: ActionScale,
        hidden: int,
        members: int = MEMBERS,
        base: StepFunction = unchanged,
    ) -> None:
        super().__init__(observation=observation, action=action, hidden=hidden, base=base)
        self.members = members
        self.networks = nn.Sequential(
            EnsembleLinear(members, self.given_size, hidden),
            nn.SiLU(),
            EnsembleLinear(members, hidden, hidden),
            nn.SiLU(),
            EnsembleLinear(members, hidden, 2 * self.outcome_size),
        )
        limits = torch.iinfo(torch.int64)
        columns = self.given_size + self.outcome_size
        self.register_buffer("bootstrap", torch.randint(limits.min, limits.max, (members, columns)) | 1)

    def density_loss(self, transition: Transition, noise: Tensor | None) -> Tensor:  # noqa: ARG002 (none needed)
        """Negative log-likelihood of each member on its bootstrap, mean over members and transitions, () in nats."""
        given, outcome = self.standardised(transition)
        return -(self.bootstrap_weights(transition) * self._law(given).log_density(outcome)).mean()

    def mean_error(self, transition: Transition) -> Tensor:
        """Of each member on its bootstrap, mean over the members, ()."""
        given, outcome = self.standardised(transition)
        error = (self._law(given).mean - outcome).square().sum(-1)
        return (self.bootstrap_weights(transition) * error).mean()

    def log_density(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Of the mixture, exactly, (B,) nats."""
        return self._law(given).log_density(outcome).logsumexp(0) - math.log(self.members)

    def draw(self, given: Tensor, generator: torch.Generator | None) -> Tensor:
        """Rows are dealt to the members at random, as many to each, and every member draws for its own."""
        rows = len(given)
        share = -(-rows // self.members)
        dealt = torch.randperm(share * self.members, generator=generator, device=given.device)
        hands = given[dealt % rows].view(self.members, share, -1)
        return self._law(hands).draw(generator).flatten(0, 1)[dealt.argsort()[:rows]]

    def redraw(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:
        """By a member drawn with the probability that the outcome came from it, along the noise that it then had."""
        law = self._law(given)
        chances = law.log_density(outcome).detach().softmax(0).mT
        member = torch.multinomial(chances, 1, generator=generator).squeeze(1)
        rows = torch.arange(len(given), device=given.device)
        mean, std = law.mean[member, rows], law.log_std[member, rows].exp()
        return mean + std * ((outcome - mean) / std).detach()

    @torch.no_grad()
    def bootstrap_weights(self, transition: Transition) -> Tensor:
        """How often each transition counts for each member, (E, B), 0 or 2 with equal chances (Owen and Eckles, 2012).

        The choice is a hash of the transition, so a member never sees the half that is not its own, however often the
        replay hands it out.
        """
        rows = torch.cat([*transition[:2], transition.reward.unsqueeze(-1), transition.next_observation], -1)
        bits = rows.float().contiguous().view(torch.int32).long()
        hashed = (bits * self.bootstrap.unsqueeze(1)).sum(-1)
        return 2.0 * (hashed < 0).to(rows.dtype)

    def _law(self, given: Tensor) -> Gaussian:
        """Of each member, (E, R, S + 1); scales approach their limits smoothly, so that one at a limit can come back."""
        mean, log_std = self.networks(given).chunk(2, -1)
        log_std = LOG_STD_MAX - functional.softplus(LOG_STD_MAX - log_std)
        return Gaussian(mean, LOG_STD_MIN + functional.softplus(log_std - LOG_STD_MIN))
