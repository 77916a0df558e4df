"""A policy as a model of the protocol: its tensors, and which question a request asks.

With `observation` alone the policy decides, and outputs are (B, ...). With candidate actions in `action` beside it, the
laws of those are answered, (B, C, ...), and there is no output `action`.
"""

from dataclasses import dataclass

from protos.codec import FloatArray
from server.bundle import SAMPLE_OUTPUTS, output_shapes
from server.oip.messages import (
    BACKEND,
    PLATFORM,
    ModelConfig,
    ModelInput,
    ModelMetadata,
    ModelOutput,
    ModelParameter,
    ModelTransactionPolicy,
    TensorMetadata,
)
from server.oip.tensors import DATATYPE, SentTensor, TensorSpec, checked_inputs, checked_outputs
from server.question import Answered
from server.runtime import Detail
from server.served_policy import MAX_ROWS, Asking, ServedPolicy

OBSERVATION, ACTION = "observation", "action"
DATA_TYPE = f"TYPE_{DATATYPE}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Checked inputs, and what is wanted of their answer."""

    observations: FloatArray
    """(B, S)."""
    candidates: FloatArray | None
    """(B, C, A)."""
    detail: Detail
    outputs: tuple[str, ...]
    """Names, in the order of the reply."""


class PolicyModel:
    """One loaded policy under the protocol's names."""

    def __init__(self, policy: ServedPolicy) -> None:
        self.policy = policy
        manifest = policy.manifest
        shapes = output_shapes(manifest)
        self.inputs = (
            TensorSpec(name=OBSERVATION, shape=(-1, len(manifest.observation))),
            TensorSpec(name=ACTION, shape=(-1, -1, len(manifest.action)), optional=True),
        )
        self.outputs = tuple(TensorSpec(name=name, shape=(-1, *axes)) for name, axes in shapes.items())

    def question(self, inputs: tuple[SentTensor, ...], outputs: tuple[str, ...]) -> Question:
        """What a request asks; the requested outputs choose how much is computed.

        Raises:
            InvalidInputError: an input or output does not fit; names it.
        """
        values = checked_inputs(inputs, self.inputs)
        candidates = values.get(ACTION)
        served = self.outputs if candidates is None else self.outputs[1:]
        names = checked_outputs(outputs, served)
        names = names or tuple(spec.name for spec in served if spec.name not in SAMPLE_OUTPUTS)
        return Question(observations=values[OBSERVATION], candidates=candidates, detail=_detail(names), outputs=names)

    async def answer(self, question: Question, asking: Asking) -> Answered:
        """Asks the core; raises what it raises."""
        if question.candidates is None:
            return await self.policy.infer(question.observations, question.detail, asking)
        return await self.policy.assess(question.observations, question.candidates, question.detail, asking)

    def metadata(self) -> ModelMetadata:
        """The tensors."""
        return ModelMetadata(
            name=self.policy.manifest.name,
            versions=(self.policy.manifest.version,),
            platform=PLATFORM,
            inputs=tuple(map(_metadata, self.inputs)),
            outputs=tuple(map(_metadata, self.outputs)),
        )

    def config(self) -> ModelConfig:
        """The configuration; among its parameters the contract's fingerprint, which names channels, units and limits."""
        manifest = self.policy.manifest
        parameters = {
            "contract": self.policy.fingerprint,
            "control_period_s": repr(manifest.control_period_s),
            "execution_provider": self.policy.runtime.provider,
        }
        return ModelConfig(
            name=manifest.name,
            platform=PLATFORM,
            backend=BACKEND,
            max_batch_size=MAX_ROWS,
            input=tuple(
                ModelInput(name=spec.name, data_type=DATA_TYPE, dims=spec.shape[1:], optional=spec.optional)
                for spec in self.inputs
            ),
            output=tuple(
                ModelOutput(name=spec.name, data_type=DATA_TYPE, dims=spec.shape[1:]) for spec in self.outputs
            ),
            parameters={name: ModelParameter(string_value=value) for name, value in parameters.items()},
            model_transaction_policy=ModelTransactionPolicy(decoupled=False),
        )


def _metadata(spec: TensorSpec) -> TensorMetadata:
    return TensorMetadata(name=spec.name, datatype=DATATYPE, shape=spec.shape)


def _detail(names: tuple[str, ...]) -> Detail:
    """The least that holds all of them."""
    if not set(names).isdisjoint(SAMPLE_OUTPUTS):
        return Detail.SAMPLES
    return Detail.NONE if names == (ACTION,) else Detail.SUMMARY
