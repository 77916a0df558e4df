"""One policy version on ONNX Runtime: checked when it is built, finite and within limits whenever it answers."""

import contextlib
import io
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from server.bound_row import BoundRow
from server.bundle import SAMPLE_OUTPUTS, Bundle, output_shapes
from server.errors import BundleError, InferenceError, InvalidInputError, ProviderError
from server.manifest import Manifest
from server.row_check import RowCheck, limits
from server.row_layout import RowLayout

logger = logging.getLogger(__name__)

Provider = Literal["auto", "cpu", "cuda", "tensorrt"]
FloatArray = NDArray[np.float32]
CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
FAILED = "ONNX Runtime could not compute the policy; the server's log says why"
PROFILE_ROWS = 256
"""Rows, and candidates of a row, that TensorRT builds for; more would make it build again while a robot waits."""
WARM_UP_RUNS = 32
WARM_UP_ROWS = 8


class Detail(StrEnum):
    """How much of the joint law of return and gradient to compute."""

    NONE = "none"
    SUMMARY = "summary"
    SAMPLES = "samples"


Axes = tuple[int | None, ...]
"""Sizes of a tensor's axes after the first, which is the batch; None for one that must be dynamic too."""


class Runtime:
    """Inference of one verified bundle. May be called from several threads at once."""

    def __init__(self, bundle: Bundle, provider: Provider = "auto") -> None:
        """Builds the sessions, checks inputs and outputs, replays the golden data, warms up.

        Raises:
            BundleError: a graph does not load, does not fit the manifest, or differs from the golden data here.
            ProviderError: `provider` is demanded and ONNX Runtime cannot run on it here.
        """
        self.manifest: Manifest = bundle.manifest
        self.path = bundle.path
        """Where the bundle was read."""
        self._bundle = bundle
        shapes: dict[str, Axes] = dict(output_shapes(bundle.manifest))
        sizes = output_shapes(bundle.manifest)
        self.layouts: Mapping[Detail, RowLayout] = {
            Detail.NONE: RowLayout({"action": sizes["action"]}),
            Detail.SUMMARY: RowLayout({name: size for name, size in sizes.items() if name not in SAMPLE_OUTPUTS}),
            Detail.SAMPLES: RowLayout(sizes),
        }
        """Of the rows that `rows` returns."""
        self.law_layouts: Mapping[Detail, RowLayout] = {
            detail: RowLayout({name: size for name, size in self.layouts[detail].shapes.items() if name != "action"})
            for detail in (Detail.SUMMARY, Detail.SAMPLES)
        }
        """Of the rows that `law_rows` returns."""
        self.outputs: Mapping[Detail, tuple[str, ...]] = {
            detail: layout.names for detail, layout in self.layouts.items()
        }
        """Names of what `infer` returns."""
        observation: dict[str, Axes] = {"observation": (len(bundle.manifest.observation),)}
        action = {"action": shapes["action"]}
        of_candidates: dict[str, Axes] = {name: (None, *axes) for name, axes in shapes.items()}
        candidates = {"action": of_candidates.pop("action")}
        self._actor = self._session("actor.onnx", provider, observation, action)
        self._policy = self._session("policy.onnx", provider, observation, shapes)
        self._uncertainty = self._session("uncertainty.onnx", provider, observation | candidates, of_candidates)
        self.provider: str = self._policy.get_providers()[0]
        self._bound = threading.local()
        self._low, self._high, _ = limits(bundle.manifest.action)
        self._checks = {detail: RowCheck(layout, bundle.manifest.action) for detail, layout in self.layouts.items()}
        self._law_checks = {detail: RowCheck(layout, ()) for detail, layout in self.law_layouts.items()}
        try:
            self._replay("policy.onnx", self._policy, tuple(shapes))
            self._replay("actor.onnx", self._actor, ("action",))
            self._replay("uncertainty.onnx", self._uncertainty, tuple(of_candidates), candidates=2)
            self.inference_s: float = self._warm_up(1)
            """Median seconds of a full decision."""
            self._row_s = max(0.0, self._warm_up(WARM_UP_ROWS) - self.inference_s) / (WARM_UP_ROWS - 1)
        except InferenceError as error:
            raise BundleError(
                f"bundle refused: {bundle.path}: golden observations: {error}; export the bundle again"
            ) from error

    def _session(
        self,
        name: str,
        provider: Provider,
        inputs: Mapping[str, Axes],
        outputs: Mapping[str, Axes],
    ) -> ort.InferenceSession:
        path = self._bundle.path / name
        session = open_session(self._bundle.files[name], str(path), provider, inputs)
        for kind, expected, found in (
            ("input", inputs, session.get_inputs()),
            ("output", outputs, session.get_outputs()),
        ):
            if {node.name for node in found} != set(expected):
                raise BundleError(
                    f"bundle refused: {path}: {kind}s must be {', '.join(expected)}, "
                    f"got {', '.join(node.name for node in found)}; export the bundle again"
                )
            for node in found:
                shape = tuple(node.shape)
                axes = expected[node.name]
                if node.type != "tensor(float)" or not _fits(shape, (None, *axes)):
                    names = ["batch", *("candidates" if size is None else str(size) for size in axes)]
                    raise BundleError(
                        f"bundle refused: {path}: {kind} {node.name!r} must be float32 of shape "
                        f"({', '.join(names)}), named axes dynamic, got {node.type} {shape}; export the bundle again"
                    )
        return session

    def _replay(self, name: str, session: ort.InferenceSession, outputs: Sequence[str], *, candidates: int = 0) -> None:
        """Compares with the golden data; where `candidates` are given, each of as many copies of the golden actions."""
        path, tolerance, golden = self._bundle.path / name, self.manifest.tolerance, self._bundle.golden

        def repeated(values: FloatArray) -> FloatArray:
            return np.repeat(values[:, np.newaxis], candidates, axis=1) if candidates else values

        inputs = {"observation": golden["observation"]}
        if candidates:
            inputs["action"] = repeated(golden["action"])
        values = self._run(session, outputs, inputs)
        for output, value in zip(outputs, values, strict=True):
            expected = repeated(golden[output])
            allowed = tolerance.absolute + tolerance.relative * np.abs(expected)
            if value.shape != expected.shape:
                raise BundleError(
                    f"bundle refused: {path}: {output} has shape {value.shape} for the golden observations, "
                    f"expected {expected.shape}; export the bundle again"
                )
            excess = np.abs(value - expected) - allowed
            if not (excess <= 0).all():
                worst = np.unravel_index(int(np.argmax(np.nan_to_num(excess, nan=np.inf))), excess.shape)
                raise BundleError(
                    f"bundle refused: {path}: {output} differs from golden.npz at {tuple(map(int, worst))}: "
                    f"{value[worst]} here, {expected[worst]} at export, tolerance {allowed[worst]:.3g}; "
                    "export the bundle again, or serve it with the ONNX Runtime and provider it was exported for"
                )

    def _warm_up(self, rows: int) -> float:
        """Runs golden observations as requests will, `rows` at once; returns the median seconds of their full decisions."""
        observations = np.resize(
            self._bundle.golden["observation"], (WARM_UP_RUNS + rows, len(self.manifest.observation))
        )
        durations = []
        for index in range(WARM_UP_RUNS):
            started = time.perf_counter()
            self.infer(observations[index : index + rows], Detail.SAMPLES)
            durations.append(time.perf_counter() - started)
            self.infer(observations[:rows], Detail.NONE)
        return sorted(durations)[len(durations) // 2]

    def cost_s(self, rows: int) -> float:
        """About how many seconds so many rows take at once, from what they took when the policy was loaded."""
        return self.inference_s + (rows - 1) * self._row_s

    def rows_within(self, seconds: float) -> int:
        """About how many rows can be computed at once within so many seconds; at least one."""
        beyond_first = seconds - self.inference_s
        return 1 if beyond_first <= 0 else 1 + int(min(beyond_first / max(self._row_s, 1e-9), 1e6))

    def infer(self, observations: FloatArray, detail: Detail) -> list[FloatArray]:
        """Decides for a batch of observations.

        Args:
            observations: (B, S), checked and finite.
            detail: how much to compute; only `SAMPLES` fetches the raw samples.

        Returns:
            The outputs named in `outputs[detail]`, in that order, each (B, ...), finite, actions within their limits.

        Raises:
            InferenceError: an output is not finite or an action is outside its limits, or ONNX Runtime failed.
        """
        return list(self.layouts[detail].split(self.rows(observations, detail)).values())

    def rows(self, observations: FloatArray, detail: Detail) -> FloatArray:
        """As `infer`, in one array: (B, width) of `layouts[detail]`."""
        session = self._actor if detail is Detail.NONE else self._policy
        layout = self.layouts[detail]
        if len(observations) == 1 and self.provider == CPU:
            rows = self._bound_row(session, layout, detail, observations)
        else:
            outputs = self._run(session, layout.names, {"observation": observations})
            rows = layout.join(dict(zip(layout.names, outputs, strict=True)), axes=1)
        self._checks[detail].check(rows)
        return rows

    def _bound_row(
        self, session: ort.InferenceSession, layout: RowLayout, detail: Detail, observations: FloatArray
    ) -> FloatArray:
        bound: BoundRow | None = getattr(self._bound, detail, None)
        if bound is None:
            bound = BoundRow(session, layout, observation_size=observations.shape[1])
            setattr(self._bound, detail, bound)
        try:
            return bound.run(observations[0])
        except Exception as error:
            raise InferenceError(FAILED) from error

    def assess(
        self, observations: FloatArray, candidates: FloatArray, detail: Detail = Detail.SAMPLES
    ) -> dict[str, FloatArray]:
        """The law of the return and its gradients under actions that somebody proposes.

        Args:
            observations: (B, S), checked and finite.
            candidates: (B, C, A), in the units of the contract.
            detail: `SUMMARY` or `SAMPLES`.

        Returns:
            The summary and perhaps sample outputs by name, each (B, C, ...), finite.

        Raises:
            InvalidInputError: a candidate is not finite or outside its limits; names it by row, candidate and channel.
            InferenceError: an output is not finite, or ONNX Runtime failed.
        """
        return self.law_layouts[detail].split(self.law_rows(observations, candidates, detail))

    def law_rows(self, observations: FloatArray, candidates: FloatArray, detail: Detail) -> FloatArray:
        """As `assess`, in one array: (B, C, width) of `law_layouts[detail]`."""
        self.check_candidates(len(observations), candidates)
        layout = self.law_layouts[detail]
        outputs = self._run(self._uncertainty, layout.names, {"observation": observations, "action": candidates})
        rows = layout.join(dict(zip(layout.names, outputs, strict=True)), axes=2)
        self._law_checks[detail].check(rows)
        return rows

    def check_candidates(self, rows: int, candidates: FloatArray) -> None:
        """Raises InvalidInputError unless candidates (rows, C, A) lie within the limits; names the first that does not."""
        actions = len(self.manifest.action)
        if candidates.ndim != 3 or (len(candidates), candidates.shape[2]) != (rows, actions) or not candidates.size:
            raise InvalidInputError(
                f"candidate actions must have shape ({rows}, candidates, {actions}) with at least one candidate, "
                f"got {candidates.shape}"
            )
        # Written so that NaN counts as outside.
        outside = ~((candidates >= self._low) & (candidates <= self._high) & np.isfinite(candidates))
        if outside.any():
            row, candidate, index = map(int, np.argwhere(outside)[0])
            channel = self.manifest.action[index]
            raise InvalidInputError(
                f"candidate {candidate} of row {row} has {candidates[row, candidate, index]!s} for {channel.name!r} at "
                f"index {index}, outside [{self._low[index]!s}, {self._high[index]!s}] {channel.unit}; "
                "send actions within the limits that Describe states"
            )

    def _run(
        self, session: ort.InferenceSession, outputs: Sequence[str], inputs: Mapping[str, FloatArray]
    ) -> list[FloatArray]:
        try:
            values: list[FloatArray] = session.run(list(outputs), dict(inputs))
        except Exception as error:
            raise InferenceError(FAILED) from error
        return values


def open_session(
    model: bytes, path: str, provider: Provider, inputs: Mapping[str, Axes] = MappingProxyType({})
) -> ort.InferenceSession:
    """A session with the options that answers are given with.

    Args:
        model: the graph.
        path: what errors call it.
        provider: `auto` is CUDA, or the CPU where that is missing; TensorRT only on demand, since it builds for minutes.
        inputs: sizes of the inputs; TensorRT builds for all batches from them at once.

    Raises:
        BundleError: ONNX Runtime cannot load the graph.
        ProviderError: `provider` is demanded and ONNX Runtime cannot run on it here.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    # What ONNX Runtime reports on its own goes to stderr in several lines; errors are raised here in one.
    ort.set_default_logger_severity(4)
    providers: list[str | tuple[str, dict[str, str]]] = [CPU]
    available = ort.get_available_providers()
    demanded = {"cuda": CUDA, "tensorrt": TENSORRT}.get(provider)
    # ONNX Runtime prints what it loads and what it cannot.
    with contextlib.redirect_stdout(io.StringIO()) as report:
        if provider != "cpu" and CUDA in available:
            ort.preload_dlls()
            # TensorFloat-32 keeps ten bits of mantissa, too few for golden data and for replaying records.
            providers.insert(0, (CUDA, {"use_tf32": "0"}))
        if provider == "tensorrt" and TENSORRT in available:
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # TensorRT takes no option for it
            shapes = {"min": _shapes(inputs, 1), "opt": _shapes(inputs, 1), "max": _shapes(inputs, PROFILE_ROWS)}
            profile = {f"trt_profile_{bound}_shapes": text for bound, text in shapes.items() if text}
            providers.insert(0, (TENSORRT, profile))
        try:
            session = ort.InferenceSession(model, options, providers=providers)
        except Exception as error:
            raise BundleError(
                f"bundle refused: {path}: ONNX Runtime {ort.__version__} cannot load it ({error}); export it again"
            ) from error
    logger.debug("%s: %s", path, report.getvalue().strip() or session.get_providers())
    if demanded is not None and session.get_providers()[0] != demanded:
        name, libraries = {CUDA: ("CUDA", "CUDA or cuDNN"), TENSORRT: ("TensorRT", "TensorRT, CUDA or cuDNN")}[demanded]
        reason = f"{libraries} did not load" if demanded in available else f"the installed ONNX Runtime has no {name}"
        also = " TensorRT 10 ('pip install tensorrt')" if demanded == TENSORRT else ""
        raise ProviderError(
            f"--provider {provider} was demanded but {reason}; install the 'gpu' extra{also and f',{also}'} and a driver "
            "that fits it, or serve with --provider cpu"
        )
    return session


def _shapes(inputs: Mapping[str, Axes], rows: int) -> str:
    """The inputs' shapes as TensorRT's profiles are written, every dynamic axis `rows` long."""
    return ",".join(
        f"{name}:{'x'.join(str(rows if size is None else size) for size in (None, *axes))}"
        for name, axes in inputs.items()
    )


def _fits(found: Sequence[int | str | None], expected: Axes) -> bool:
    """Whether the shape of a graph allows the expected one; an axis that the graph leaves open is a string or None."""
    # A number where None is expected would be a baked-in batch size.
    return len(found) == len(expected) and all(
        not isinstance(size, int) or size == wanted for size, wanted in zip(found, expected, strict=True)
    )
