"""The three graphs of a bundle, and their export to ONNX.

The critic's noise is baked in as a constant, so a graph gives the same answer to the same question on every machine.
"""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from dst_core.actor import Actor
from dst_core.baked_critic import BakedCritic
from dst_core.calibration.conformal import on_curve
from dst_core.critic import GenerativeCritic
from dst_core.data_distance import DataDistance
from dst_core.summary import RETURN_LEVELS, Summarise, Summary

BATCH, CANDIDATES = "batch", "candidates"


class UncertaintyGraph(nn.Module):
    """Observation (B, S) and action (B, A) to the summary of the joint law; the critics' samples are pooled.

    Args:
        critic: whose law.
        noise: (E, 1, n, noise), see `baked_noise`.
        references: (R, S) observations of the training data, in the user's units.
        summarise: the E n samples.
    """

    noise: Tensor

    def __init__(self, critic: GenerativeCritic, *, noise: Tensor, references: Tensor, summarise: Summarise) -> None:
        super().__init__()
        self.critic = critic
        self.baked = BakedCritic(critic, noise)
        self.data_distance = DataDistance(critic.observation.standardise(references))
        self.summarise = summarise
        self.register_buffer("noise", noise)

    def forward(self, observation: Tensor, action: Tensor) -> Summary:
        """The summary and the samples behind it."""
        standardised = self.critic.observation.standardise(observation)
        return self.of_standardised(standardised, self.critic.action.to_unit(action), self.data_distance(standardised))

    def of_standardised(self, standardised: Tensor, unit: Tensor, data_distance: Tensor) -> Summary:
        """The same of a standardised observation, an action in [-1, 1], and the distance that is passed on."""
        samples = self.baked(standardised, unit)
        summary: Summary = self.summarise(
            samples.returns,
            samples.action_gradient,
            data_distance=data_distance,
            observation_gradient=samples.observation_gradient_mean,
        )
        return summary


class Correction(nn.Module):
    """Corrected quantiles as `dst_core.calibration.conformal.corrected` has them.

    Args:
        positions: (Q,) ascending, on the predicted quantile curve.
        floor: `dst_core.calibration.conformal.std_floor`; a constant of the graph.
        levels: (Q,) ascending.
    """

    weights: Tensor
    beyond: Tensor

    def __init__(
        self, positions: tuple[float, ...], *, floor: float, levels: tuple[float, ...] = RETURN_LEVELS
    ) -> None:
        super().__init__()
        self.floor = floor
        weights, beyond = on_curve(np.asarray(positions), levels)
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float32))
        self.register_buffer("beyond", torch.tensor(beyond, dtype=torch.float32))

    def forward(self, raw: Tensor, std: Tensor) -> Tensor:
        """The curve through the raw quantiles (B, Q) at the positions; sorted, lest rounding cross two."""
        moved = raw @ self.weights + self.beyond * std.clamp_min(self.floor).unsqueeze(1)
        return moved.topk(len(self.beyond), dim=1, largest=False, sorted=True).values


class Outputs(nn.Module):
    """What the graphs of a bundle give of a summary, in the order of docs/bundle.md.

    Args:
        correction: None where the bundle is not calibrated.
        observation_gradient: whether to give it.
    """

    def __init__(self, *, correction: Correction | None = None, observation_gradient: bool = False) -> None:
        super().__init__()
        self.correction = correction
        names = list(Summary._fields)
        if correction is not None:
            names.insert(names.index("return_quantiles_raw") + 1, "return_quantiles_corrected")
        if not observation_gradient:
            names.remove("observation_gradient_mean")
        self.names = tuple(names)

    def forward(self, summary: Summary) -> tuple[Tensor, ...]:
        """One tensor per name."""
        values = summary._asdict()
        if self.correction is not None:
            values["return_quantiles_corrected"] = self.correction(summary.return_quantiles_raw, summary.return_std)
        return tuple(values[name] for name in self.names)


class PolicyGraph(nn.Module):
    """Observation (B, S) to action and summary outputs, for the control path."""

    def __init__(self, actor: Actor, law: UncertaintyGraph, outputs: Outputs) -> None:
        super().__init__()
        self.actor = actor
        self.law = law
        self.outputs = outputs

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        """The action and the summary of the law that follows it."""
        standardised = self.actor.observation.standardise(observation)
        unit = self.actor.unit_action(standardised)
        summary = self.law.of_standardised(standardised, unit, self.law.data_distance(standardised))
        return self.actor.action.from_unit(unit), *self.outputs(summary)


class CandidatesGraph(nn.Module):
    """Observation (B, S) and candidate actions (B, C, A) to the summary outputs of every candidate, (B, C, ...)."""

    def __init__(self, law: UncertaintyGraph, outputs: Outputs) -> None:
        super().__init__()
        self.law = law
        self.outputs = outputs

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, ...]:
        """The summary of each candidate's law."""
        batch, candidates = action.shape[:2]
        standardised = self.law.critic.observation.standardise(observation)
        distance = self.law.data_distance(standardised).unsqueeze(1).expand(batch, candidates).flatten()
        rows = standardised.unsqueeze(1).expand(batch, candidates, observation.shape[1]).flatten(0, 1)
        unit = self.law.critic.action.to_unit(action).flatten(0, 1)
        summary = self.law.of_standardised(rows, unit, distance)
        return tuple(value.view(batch, candidates, *value.shape[1:]) for value in self.outputs(summary))


def baked_noise(critic: GenerativeCritic, *, count: int, seed: int) -> Tensor:
    """Constant noise, (E, 1, count / E, noise): standardised over each critic's samples, so that few samples carry no bias."""
    noise = torch.randn(
        critic.members, 1, count // critic.members, critic.noise_size, generator=torch.Generator().manual_seed(seed)
    )
    centred = noise - noise.mean(2, keepdim=True)
    return centred / centred.square().mean(2, keepdim=True).sqrt()


def export_graph(
    graph: nn.Module,
    inputs: dict[str, Tensor],
    outputs: list[str],
    path: Path,
    *,
    axes: Mapping[str, tuple[str, ...]] | None = None,
) -> None:
    """Write one self-contained ONNX file with dynamic leading axes, and make sure that they are dynamic.

    Args:
        graph: in evaluation mode, on the CPU.
        inputs: input name to an example of more than one row.
        outputs: output names in order.
        path: of the file.
        axes: names of the leading dynamic axes of each input; every input has a batch axis unless given. Outputs have those of the
            input with most of them.

    Raises:
        RuntimeError: if the exporter fixed one of their sizes.
    """
    axes = axes or dict.fromkeys(inputs, (BATCH,))
    sizes = {name: torch.export.Dim(name) for names in axes.values() for name in names}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of every library that is not there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations are not the user's
        program = torch.onnx.export(
            graph,
            tuple(inputs.values()),
            dynamo=True,
            external_data=False,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple({axis: sizes[name] for axis, name in enumerate(axes[given])} for given in inputs),
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    longest = max(axes.values(), key=len)
    for value in [*model.graph.input, *model.graph.output]:
        for axis, name in enumerate(axes.get(value.name, longest)):
            size = value.type.tensor_type.shape.dim[axis]
            if not size.dim_param:
                raise RuntimeError(
                    f"{path.name}: the {name} axis of {value.name} was fixed to {size.dim_value} by the export"
                )
