"""The law that a run's bundle serves: the very graph that is calibrated and then exported."""

import copy
import hashlib

import torch

from dst_core.critic import GenerativeCritic
from dst_core.data_distance import draw_references
from dst_core.errors import ExportError
from dst_core.graphs import UncertaintyGraph, baked_noise
from dst_core.run import Run
from dst_core.summary import Summarise

NOISE_SEED = 0
THRESHOLD_LEVEL = 0.05


@torch.no_grad()
def served_law(
    run: Run, *, samples: int, return_threshold: float | None = None, critic: GenerativeCritic | None = None
) -> UncertaintyGraph:
    """The law of the return and its gradients under the run's actor, on the CPU.

    Args:
        run: a finished one.
        samples: joint samples behind every summary, shared evenly by the critics.
        return_threshold: in units of the discounted return; the 5 % quantile of the law's own samples over up to 512 replayed
            observations and the actor's actions there, unless given.
        critic: whose law; the run's evaluation critic unless given.

    Raises:
        ExportError: if the critics cannot share the samples.
    """
    critic = run.forecast if critic is None else critic
    _require_even_shares(samples, critics=critic.members)
    critic = copy.deepcopy(critic).cpu().eval().requires_grad_(False)
    references = draw_references(run.replay.state()["observation"], seed=NOISE_SEED).cpu()
    law = UncertaintyGraph(
        critic,
        noise=baked_noise(critic, count=samples, seed=NOISE_SEED),
        references=references,
        summarise=Summarise(count=samples, critics=critic.members, return_threshold=return_threshold or 0.0),
    ).eval()
    if return_threshold is None:
        actor = copy.deepcopy(run.agent.actor).cpu()
        returns = law(references, actor(references)).return_samples
        law.summarise.return_threshold.copy_(returns.flatten().quantile(THRESHOLD_LEVEL))
    return law


def fingerprint(run: Run, law: UncertaintyGraph) -> str:
    """SHA-256 (hex) over the parameters and buffers of the run's actor and the law: a calibration holds for these alone.

    The return threshold is left out: it is no part of the law.
    """
    digest = hashlib.sha256()
    for part, module in (("actor", run.agent.actor), ("law", law)):
        for name, value in sorted(module.state_dict().items()):
            if name == "summarise.return_threshold":
                continue
            digest.update(f"{part}.{name} {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _require_even_shares(samples: int, *, critics: int) -> None:
    """At least two samples for each critic, whose noise is standardised over them, and as many for one as for another."""
    share = max(-(-samples // critics), 2)
    if samples != share * critics:
        raise ExportError(
            f"samples must be a multiple of the run's {critics} critics, at least {2 * critics}, got {samples}; "
            f"use --samples {share * critics}"
        )
