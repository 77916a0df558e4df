import torch

from dst_core.world_models.gaussian import Gaussian


def pair() -> list[Gaussian]:
    generator = torch.Generator().manual_seed(0)
    return [Gaussian(*torch.randn(2, 5, 3, generator=generator)) for _ in range(2)]


def normal(gaussian: Gaussian) -> torch.distributions.Normal:
    return torch.distributions.Normal(gaussian.mean, gaussian.log_std.exp())


def test_divergence_equals_that_of_torch() -> None:
    p, q = pair()
    torch.testing.assert_close(p.divergence(q), torch.distributions.kl_divergence(normal(p), normal(q)).sum(-1))


def test_log_density_equals_that_of_torch() -> None:
    p, q = pair()
    torch.testing.assert_close(p.log_density(q.mean), normal(p).log_prob(q.mean).sum(-1))
