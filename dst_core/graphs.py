"""The three graphs of a bundle, and their export to ONNX.

The critic's noise is baked in as a constant, so a graph gives the same answer to the same question on every machine.
"""

import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from dst_core.actor import Actor
from dst_core.critic import GenerativeCritic
from dst_core.summary import Summarise, Summary


class UncertaintyGraph(nn.Module):
    """Observation (B, S) and action (B, A) to the summary of the joint law; the critics' samples are pooled."""

    noise: Tensor

    def __init__(self, critic: GenerativeCritic, noise: Tensor, summarise: Summarise) -> None:
        super().__init__()
        self.critic = critic
        self.summarise = summarise
        self.register_buffer("noise", noise)

    def joint_samples(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples (B, N) and action-gradient samples (B, N, A), critic after critic."""
        joint = self.critic.joint(observation, action, self.noise)
        return torch.cat(joint.returns.unbind(), 1), torch.cat(joint.action_gradient.unbind(), 1)

    def forward(self, observation: Tensor, action: Tensor) -> Summary:
        """The summary and the samples behind it."""
        summary: Summary = self.summarise(*self.joint_samples(observation, action))
        return summary


class PolicyGraph(nn.Module):
    """Observation (B, S) to action and summary, for the control path."""

    def __init__(self, actor: Actor, uncertainty: UncertaintyGraph) -> None:
        super().__init__()
        self.actor = actor
        self.uncertainty = uncertainty

    def forward(self, observation: Tensor) -> tuple[Tensor, ...]:
        """The action and the summary of the law that follows it."""
        action = self.actor(observation)
        return action, *self.uncertainty(observation, action)


def baked_noise(critic: GenerativeCritic, *, count: int, seed: int) -> Tensor:
    """Constant noise, (E, 1, count / E, noise): standardised over each critic's samples, so that few samples carry no bias."""
    noise = torch.randn(
        critic.members, 1, count // critic.members, critic.noise_size, generator=torch.Generator().manual_seed(seed)
    )
    centred = noise - noise.mean(2, keepdim=True)
    return centred / centred.square().mean(2, keepdim=True).sqrt()


def export_graph(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> None:
    """Write one self-contained ONNX file with a dynamic batch axis, and make sure that the axis is dynamic.

    Args:
        graph: in evaluation mode, on the CPU.
        inputs: input name to an example of more than one row.
        outputs: output names in order.
        path: of the file.

    Raises:
        RuntimeError: if the exporter fixed the batch size.
    """
    batch = torch.export.Dim("batch")
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
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    model = onnx.load(path)
    onnx.checker.check_model(model)
    for value in [*model.graph.input, *model.graph.output]:
        axis = value.type.tensor_type.shape.dim[0]
        if not axis.dim_param:
            raise RuntimeError(
                f"{path.name}: the batch axis of {value.name} was fixed to {axis.dim_value} by the export"
            )
