"""OpenTelemetry traces, where the environment asks for them: https://opentelemetry.io/docs/specs/otel/configuration/.

A call is one span with `queue` and `inference` inside, and continues the trace that its W3C `traceparent` names. A control
session is one span too, of hours perhaps, so its ticks are traces of their own that link to it: one a second, and ten a
second of those that took longer than the control period.

OpenTelemetry's SDK is not even imported unless it is asked for.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from server import logs
from server.errors import ServingError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span
    from opentelemetry.util.types import AttributeValue

TICK_PERIOD_NS = 1_000_000_000
SLOW_TICK_PERIOD_NS = 100_000_000
FLUSH_S = 2.0
"""How long spans may take to reach the collector once the server stops."""
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class TracingError(ServingError):
    """Traces are asked for and cannot be written."""


class Call:
    """A call that is being answered."""

    __slots__ = ("last_tick_ns", "session", "span")

    def __init__(self, span: "Span", *, session: bool) -> None:
        self.span = span
        self.session = session
        self.last_tick_ns = 0

    def describe(self, **attributes: "AttributeValue") -> None:
        """Adds to the call's span."""
        self.span.set_attributes(attributes)

    def fail(self, reason: str) -> None:
        """Marks the span as one that failed."""
        from opentelemetry.trace import Status, StatusCode  # noqa: PLC0415 - imported long since, where there is a span

        self.span.set_status(Status(StatusCode.ERROR, reason))


_call: ContextVar[Call | None] = ContextVar("call", default=None)


class Tracing:
    """Writes spans to `provider`."""

    def __init__(self, provider: "TracerProvider", *, clock: Callable[[], int] = time.time_ns) -> None:
        from opentelemetry import propagate, trace  # noqa: PLC0415 - paid for only where traces are asked for

        self._provider = provider
        self._tracer = provider.get_tracer("dst-policy-server")
        self._clock = clock
        self._extract = propagate.extract
        self._trace = trace

    @contextmanager
    def call(
        self, name: str, headers: Mapping[str, str], *, session: bool, attributes: "Mapping[str, AttributeValue]"
    ) -> Iterator[Call]:
        """The span of one call, for as long as the block runs; an exception is written to it.

        Args:
            name: of the operation.
            headers: lower-case names to values; `traceparent` and `tracestate` are continued.
            session: whether many decisions are made in it.
            attributes: of the span, by OpenTelemetry's semantic conventions.
        """
        trace = self._trace
        span = self._tracer.start_span(
            name,
            self._extract(headers),
            trace.SpanKind.SERVER,
            attributes,
            start_time=self._clock(),
            record_exception=False,
            set_status_on_exception=False,
        )
        call = Call(span, session=session)
        # Never set back: a call has its task to itself, and a stream may be closed from another one.
        _call.set(call)
        logs.bind(trace=trace.format_trace_id(span.get_span_context().trace_id))
        try:
            yield call
        except BaseException as error:
            # The message may quote what a client sent; the log has it.
            call.fail(type(error).__name__)
            raise
        finally:
            span.set_attributes({f"dst.{name}": value for name, value in logs.bound().items() if name != "trace"})
            span.end(self._clock())

    def decided(self, policy: str, *, queue_ns: int, inference_ns: int, total_ns: int, slow: bool) -> None:
        """Writes what one decision took, from its receipt until now, below the call that this task answers."""
        call = _call.get()
        if call is None or not call.span.is_recording():
            return
        ended_ns = self._clock()
        received_ns = ended_ns - total_ns
        if not call.session:
            call.describe(**{"dst.policy": policy})
            self._stages(call.span, received_ns, queue_ns, inference_ns)
            return
        if ended_ns - call.last_tick_ns < (SLOW_TICK_PERIOD_NS if slow else TICK_PERIOD_NS):
            return
        call.last_tick_ns = ended_ns
        # No span is ever made OpenTelemetry's current one, so this begins a trace of its own.
        tick = self._tracer.start_span(
            "tick",
            attributes={"dst.policy": policy, "dst.slow": slow, "dst.session": logs.bound().get("session", "")},
            links=[self._trace.Link(call.span.get_span_context())],
            start_time=received_ns,
        )
        self._stages(tick, received_ns, queue_ns, inference_ns)
        tick.end(ended_ns)

    def _stages(self, parent: "Span", received_ns: int, queue_ns: int, inference_ns: int) -> None:
        context = self._trace.set_span_in_context(parent)
        begun_ns = received_ns
        for name, duration_ns in (("queue", queue_ns), ("inference", inference_ns)):
            self._tracer.start_span(name, context, start_time=begun_ns).end(begun_ns + duration_ns)
            begun_ns += duration_ns

    def close(self) -> None:
        """Sends what is left, for `FLUSH_S` at most. Blocks."""
        # The SDK goes on trying a collector that is gone for as long as it takes; the server does not wait for it.
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(FLUSH_S)


def tracing_from_environment(environment: Mapping[str, str] = os.environ) -> Tracing | None:
    """Traces to the collector that OTEL_* variables name, or None where they name none.

    Raises:
        TracingError: OpenTelemetry is asked for and not installed, or by a protocol that is not spoken here.
    """
    exporter = environment.get("OTEL_TRACES_EXPORTER", "").strip()
    asked = next((name for name in (*ENDPOINTS, "OTEL_TRACES_EXPORTER") if environment.get(name, "").strip()), None)
    if asked is None or exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if exporter not in {"", "otlp"}:
        raise TracingError(f"OTEL_TRACES_EXPORTER must be otlp or none, got {exporter!r}; a collector takes OTLP")
    for name in PROTOCOLS:
        if environment.get(name, "").strip() not in {"", "http/protobuf"}:
            raise TracingError(
                f"{name} must be http/protobuf, got {environment[name]!r}; collectors take it on port 4318 by default"
            )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError as error:
        raise TracingError(
            f"{asked} asks for traces but OpenTelemetry is not installed; install 'dst-policy-server[tracing]', "
            "or unset the variable"
        ) from error
    named = environment.get("OTEL_SERVICE_NAME") or "service.name=" in environment.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "dst-serve"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
