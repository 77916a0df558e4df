"""A conditional normalising flow as world model: coupling layers of rational-quadratic splines, in which density and draw are exact.

Durkan, Bekasov, Murray and Papamakarios, "Neural spline flows", NeurIPS 2019, by the library `zuko`. Splines reach over
[-5, 5] standardised units; beyond, a layer is the identity.
"""

import torch
import zuko
from torch import Tensor, nn
from zuko.transforms import MonotonicRQSTransform

from dst_core.networks import ActionScale, Standardiser
from dst_core.world_model import LearnedModel, StepFunction, unchanged

LAYERS = 3
BINS = 8


class NormalisingFlow(LearnedModel):
    """Outcomes as a smooth, invertible function of Gaussian noise."""

    def __init__(
        self, *, observation: Standardiser, action: ActionScale, hidden: int, base: StepFunction = unchanged
    ) -> None:
        super().__init__(observation=observation, action=action, hidden=hidden, base=base)
        self.flow = zuko.flows.NICE(
            self.outcome_size,
            self.given_size,
            transforms=LAYERS,
            univariate=MonotonicRQSTransform,
            shapes=[(BINS,), (BINS,), (BINS - 1,)],
            hidden_features=(hidden, hidden),
            activation=nn.SiLU,
        )

    def log_density(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002 (exact)
        """By the change of variables, exactly, (B,) nats."""
        density: Tensor = self.flow(given).log_prob(outcome)
        return density

    def draw(self, given: Tensor, generator: torch.Generator | None) -> Tensor:
        """Gaussian noise through the inverse of the flow."""
        noise = torch.randn(len(given), self.outcome_size, generator=generator, device=given.device, dtype=given.dtype)
        outcome: Tensor = self.flow(given).transform.inv(noise)
        return outcome

    def redraw(self, given: Tensor, outcome: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002 (exact)
        """Along the one noise that the flow makes the outcome of."""
        transform = self.flow(given).transform
        redrawn: Tensor = transform.inv(transform(outcome).detach())
        return redrawn
