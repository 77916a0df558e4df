"""What the protocol offers, for both of its wires: each decodes, asks here, encodes."""

from collections.abc import Awaitable, Callable, Mapping
from importlib.metadata import version as installed_version
from typing import TypeVar
from weakref import WeakKeyDictionary

from server.core import Core
from server.errors import InvalidInputError, OverloadedError, ServingError, UnknownPolicyError
from server.oip.messages import (
    EXTENSIONS,
    InferReply,
    InferRequest,
    ModelConfig,
    ModelIndex,
    ModelMetadata,
    ModelStatistics,
    ModelStatisticsReply,
    ServerMetadata,
)
from server.oip.models import PolicyModel
from server.oip.statistics import Statistics, summed
from server.oip.tensors import shown
from server.repository import Repository
from server.served_policy import Asking, ServedPolicy
from server.telemetry import Telemetry

DISTRIBUTION = "dst-policy-server"
IGNORED_WHEN_UNLOADING = "unload_dependents"
"""Clients always send it; no policy depends on another."""
Encoded = TypeVar("Encoded")


class InferenceService:
    """Models, inference, statistics and repository over one core."""

    def __init__(self, core: Core, repository: Repository, telemetry: Telemetry) -> None:
        self._core = core
        self._repository = repository
        self._telemetry = telemetry
        self._statistics = Statistics()
        self.everywhere: Callable[[], Awaitable[list[ModelStatistics]]] | None = None
        """Statistics of all processes of the server; None where this is the only one."""
        self._models: WeakKeyDictionary[ServedPolicy, PolicyModel] = WeakKeyDictionary()

    def metadata(self) -> ServerMetadata:
        """The server itself."""
        return ServerMetadata(name=DISTRIBUTION, version=installed_version(DISTRIBUTION), extensions=EXTENSIONS)

    def ready(self) -> bool:
        """Whether the whole server answers."""
        try:
            self._core.check_ready()
        except ServingError:
            return False
        return True

    def model(self, name: str, version: str) -> PolicyModel:
        """A loaded model; `version` is empty or the SHA-256 of its bundle.

        Raises:
            UnknownPolicyError: nothing has that name, or it is loaded in another version.
            NotReadyError: the repository has it, but it is not loaded.
            ServingError: as `Core.policy`.
        """
        self._repository.check_loaded(name)
        policy = self._core.policy(name)
        if version not in ("", policy.manifest.version):
            raise UnknownPolicyError(
                f"policy {policy.manifest.name!r} is loaded in version {policy.manifest.version}, got {shown(version)}; "
                "ask for that version, or leave it empty for whatever is loaded"
            )
        model = self._models.get(policy)
        if model is None:
            model = self._models[policy] = PolicyModel(policy)
        return model

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a model is loaded in that version; False where nothing has that name."""
        try:
            self.model(name, version)
        except ServingError:
            return False
        return True

    def model_metadata(self, name: str, version: str) -> ModelMetadata:
        """A model's tensors."""
        return self.model(name, version).metadata()

    def model_config(self, name: str, version: str) -> ModelConfig:
        """A model's configuration."""
        return self.model(name, version).config()

    async def infer(
        self,
        name: str,
        version: str,
        *,
        decode: Callable[[], InferRequest],
        encode: Callable[[InferReply], Encoded],
        asking: Asking,
    ) -> Encoded:
        """Answers one request; wires give their decoding and encoding so that both are counted among the request's time.

        Raises:
            ServingError: as `model`, and what decoding and the core refuse.
        """
        clock, received_ns = self._core.clock, asking.received_ns
        model = self.model(name, version)
        manifest = model.policy.manifest
        try:
            request = decode()
            question = model.question(request.inputs, request.outputs)
            decoded_ns = clock()
            answered = await model.answer(question, _until(asking, request.timeout_ns))
            computed_ns = clock()
            outputs = {output: answered.outputs[output] for output in question.outputs}
            encoded = encode(
                InferReply(model_name=manifest.name, model_version=manifest.version, id=request.id, outputs=outputs)
            )
        except ServingError as error:
            self._statistics.failed(model.policy, total_ns=clock() - received_ns)
            self._telemetry.refused(manifest.name, "infer", error.counted_as)
            if isinstance(error, OverloadedError):
                self._telemetry.shed(manifest.name, "queue")
            raise
        finished_ns = clock()
        self._core.admission.decided(answered.own_ns)
        self._telemetry.decided(
            manifest.name,
            "infer",
            queue_ns=answered.queue_ns,
            inference_ns=answered.inference_ns,
            total_ns=finished_ns - received_ns,
            rows=len(question.observations),
        )
        self._statistics.succeeded(
            model.policy,
            rows=len(question.observations),
            total_ns=finished_ns - received_ns,
            input_ns=decoded_ns - received_ns,
            queue_ns=max(0, received_ns + answered.queue_ns - decoded_ns),
            infer_ns=answered.inference_ns,
            output_ns=finished_ns - computed_ns,
        )
        return encoded

    async def statistics(self, name: str, version: str) -> ModelStatisticsReply:
        """Of one model, or of all loaded ones where the name is empty; sums over all processes of the server.

        Raises:
            ServingError: as `model`, and where another process does not tell.
        """
        policies = [self.model(name, version).policy] if name else list(self._core.policies.values())
        own = list(map(self._statistics.of, policies))
        if self.everywhere is not None:
            sums = summed(await self.everywhere())
            own = [sums.get((model.name, model.version), model) for model in own]
        return ModelStatisticsReply(model_stats=tuple(own))

    def own_statistics(self) -> list[ModelStatistics]:
        """Of all models, in this process alone."""
        return list(map(self._statistics.of, self._core.policies.values()))

    def index(self, repository: str, *, ready: bool) -> tuple[ModelIndex, ...]:
        """The repository's models; with `ready` only those."""
        _check_repository(repository)
        return tuple(
            ModelIndex(
                name=entry.name,
                version=entry.version,
                state="READY" if entry.ready else "UNAVAILABLE",
                reason=entry.reason,
            )
            for entry in self._repository.index()
            if entry.ready or not ready
        )

    async def load(self, repository: str, name: str, parameters: Mapping[str, object]) -> None:
        """Loads a model again from its directory.

        Raises:
            InvalidInputError: parameters are given: a bundle is served as it is.
            ServingError: as `Repository.load`.
        """
        _check_repository(repository)
        if parameters:
            raise InvalidInputError(
                f"a policy is loaded as its bundle says, so parameters must be empty, got {shown(sorted(parameters))}"
            )
        await self._repository.load(name)

    async def unload(self, repository: str, name: str, parameters: Mapping[str, object]) -> None:
        """Serves a model no more.

        Raises:
            InvalidInputError: a parameter other than `unload_dependents`, which means nothing here.
            ServingError: as `Repository.unload`.
        """
        _check_repository(repository)
        unknown = sorted(set(parameters) - {IGNORED_WHEN_UNLOADING})
        if unknown:
            raise InvalidInputError(f"parameters must be empty or {IGNORED_WHEN_UNLOADING!r}, got {shown(unknown)}")
        await self._repository.unload(name)


def _until(asking: Asking, timeout_ns: int | None) -> Asking:
    if timeout_ns is None:
        return asking
    given_ns = asking.received_ns + timeout_ns
    return asking._replace(deadline_ns=given_ns if asking.deadline_ns is None else min(asking.deadline_ns, given_ns))


def _check_repository(name: str) -> None:
    if name:
        raise UnknownPolicyError(f"repository_name must be empty, there is one repository, got {shown(name)}")
