import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from protos import policy_pb2 as pb
from server import logs
from server.telemetry import Telemetry
from server.tracing import Tracing, TracingError, tracing_from_environment
from tests.server.process import ANYWHERE, Process
from tests.server.running import SECOND, FakeClock, Robot, Running

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = ("traceparent", f"00-{TRACE}-{PARENT}-01")
MS = 1_000_000


class Collector:
    """Takes spans over OTLP as collectors do."""

    def __init__(self):
        self.spans, self.services = [], set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
                for resource in request.resource_spans:
                    collector.services |= {
                        a.value.string_value for a in resource.resource.attributes if a.key == "service.name"
                    }
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def named(self, name):
        return [span for span in self.spans if span.name == name]

    def below(self, span):
        """Its children by name."""
        return {child.name: child for child in self.spans if child.parent_span_id == span.span_id}


def attributes(span):
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


@pytest.fixture
def collector(monkeypatch):
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)
        yield collector


def check_stages(collector, span, *, queue_ns, inference_ns):
    stages = collector.below(span)
    assert stages.keys() == {"queue", "inference"}
    queue, inference = stages["queue"], stages["inference"]
    assert queue.end_time_unix_nano - queue.start_time_unix_nano == queue_ns
    assert inference.end_time_unix_nano - inference.start_time_unix_nano == inference_ns
    assert inference.start_time_unix_nano == queue.end_time_unix_nano
    assert inference.end_time_unix_nano <= span.end_time_unix_nano
    assert {queue.trace_id, inference.trace_id} == {span.trace_id}


def test_act_continues_the_callers_trace_with_its_stages_inside(loaded, collector):
    with Running.of(loaded) as running:
        request = pb.ActRequest(observation=[0.1, 0.2, 0.3])
        reply = running.stub.Act(request, timeout=20, metadata=[TRACEPARENT, ("x-request-id", "from-the-robot")])
    (span,) = collector.named("dst.policy.v1.PolicyService/Act")
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.kind) == (TRACE, PARENT, span.SPAN_KIND_SERVER)
    check_stages(collector, span, queue_ns=reply.queue_ns, inference_ns=reply.inference_ns)
    found = attributes(span)
    assert found["dst.policy"] == "reacher"
    assert found["dst.request"] == "from-the-robot"
    assert found["rpc.grpc.status_code"] == 0
    assert collector.services == {"dst-serve"}


def test_http_act_continues_the_callers_trace_with_its_stages_inside(loaded, collector):
    with Running.of(loaded) as running:
        url, body = "/v1/policies/reacher/act", {"observation": [0.1, 0.2, 0.3]}
        reply = running.client.post(url, json=body, headers=dict([TRACEPARENT]))
        running.client.get("/metrics")
    (span,) = collector.named("POST /v1/policies/{name}/act")
    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.kind) == (TRACE, PARENT, span.SPAN_KIND_SERVER)
    stages = collector.below(span)
    assert stages.keys() == {"queue", "inference"}
    found = attributes(span)
    assert (found["http.route"], found["http.response.status_code"]) == ("/v1/policies/{name}/act", 200)
    assert found["dst.request"] == reply.headers["x-request-id"]
    assert len(collector.spans) == 3


def test_refused_call_is_an_error_without_what_the_client_sent(loaded, collector):
    with Running.of(loaded) as running:
        with pytest.raises(grpc.RpcError):
            running.stub.Act(pb.ActRequest(observation=[4.25]), timeout=20)
        running.client.post("/v1/policies/reacher/act", content=b"\xff")
    (span,) = collector.named("dst.policy.v1.PolicyService/Act")
    assert attributes(span)["rpc.grpc.status_code"] == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert span.status.code == span.status.STATUS_CODE_ERROR
    assert "4.25" not in str(span)
    assert not span.events


def test_ticks_of_a_session_are_traces_of_their_own_that_link_to_it(loaded, collector):
    with Running.of(loaded) as running, Robot(running.grpc, robot="arm") as robot:
        robot.observe(1)
        answer = robot.answer()
        robot.half_close()
        assert not list(robot.responses)
    (session,) = collector.named("dst.policy.v1.PolicyService/Control")
    (tick,) = collector.named("tick")
    assert not tick.parent_span_id
    assert tick.trace_id != session.trace_id
    assert [(link.trace_id, link.span_id) for link in tick.links] == [(session.trace_id, session.span_id)]
    check_stages(collector, tick, queue_ns=answer.queue_ns, inference_ns=answer.inference_ns)
    assert attributes(session)["dst.session"] == robot.opened.session
    assert attributes(tick)["dst.session"] == robot.opened.session
    assert not collector.below(session)


@pytest.fixture
def kept():
    return InMemorySpanExporter()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def tracing(kept, clock):
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    return Tracing(provider, clock=clock)


def ticks(kept, tracing, clock, manifest, *, seconds, total_ns):
    """How many ticks are traced of a session at 100 Hz."""
    telemetry = Telemetry([manifest], tracing=tracing)

    async def session():
        with tracing.call("Control", {}, session=True, attributes={}):
            for _ in range(100 * seconds):
                clock.now += SECOND // 100
                telemetry.decided("reacher", "control", queue_ns=1000, inference_ns=2000, total_ns=total_ns)

    asyncio.run(session())
    return len([span for span in kept.get_finished_spans() if span.name == "tick"])


def test_one_tick_a_second_is_traced(kept, tracing, clock, loaded):
    assert ticks(kept, tracing, clock, loaded.manifest, seconds=10, total_ns=1 * MS) == 10


def test_ticks_slower_than_the_control_period_are_traced_ten_a_second(kept, tracing, clock, loaded):
    assert ticks(kept, tracing, clock, loaded.manifest, seconds=10, total_ns=11 * MS) == 100


def test_call_that_the_caller_does_not_sample_costs_no_span(kept, tracing, loaded):
    telemetry = Telemetry([loaded.manifest], tracing=tracing)

    async def act():
        unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
        with tracing.call("Act", unsampled, session=False, attributes={}):
            telemetry.decided("reacher", "act", queue_ns=1, inference_ns=1, total_ns=1)

    asyncio.run(act())
    assert kept.get_finished_spans() == ()


def test_log_lines_of_a_traced_call_carry_its_trace(tracing):
    async def act():
        with tracing.call("Act", dict([TRACEPARENT]), session=False, attributes={}):
            return logs.bound()["trace"]

    assert asyncio.run(act()) == TRACE


def test_collector_that_does_not_answer_does_not_keep_the_server_from_stopping(bundle):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "300"}
        with Process(bundle, *ANYWHERE, env={**os.environ, **asked}) as server:
            httpx.post(f"{server.http}/v1/policies/reacher/act", json={"observation": [0.1, 0.2, 0.3]})
            assert server.stop() == 0
        silent.accept()[0].close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_SERVICE_NAME": "arm-cell"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(environment):
    assert tracing_from_environment(environment) is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER must be otlp or none, got 'zipkin'"),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, got 'grpc'",
        ),
    ],
)
def test_traces_that_cannot_be_written_are_refused(environment, message):
    with pytest.raises(TracingError, match=message):
        tracing_from_environment(environment)


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout.strip()


def test_opentelemetrys_sdk_is_not_imported_unless_it_is_asked_for(bundle):
    code = (
        "import sys, asyncio, pathlib\n"
        "from server.policy_server import PolicyServer, load\n"
        "from server.config import ServeConfig\n"
        f"config = ServeConfig(bundles=(pathlib.Path({json.dumps(str(bundle))}),))\n"
        "async def build():\n    PolicyServer(load(config), config)\n"
        "asyncio.run(build())\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    assert python(code) == "[]"


def test_missing_sdk_of_opentelemetry_is_named_with_its_extra():
    code = (
        "import sys\nsys.modules['opentelemetry.sdk'] = None\n"
        "from server.tracing import TracingError, tracing_from_environment\n"
        "try:\n    tracing_from_environment({'OTEL_EXPORTER_OTLP_ENDPOINT': 'http://127.0.0.1:4318'})\n"
        "except TracingError as error:\n    print(error)"
    )
    assert python(code) == (
        "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces but OpenTelemetry is not installed; "
        "install 'dst-policy-server[tracing]', or unset the variable"
    )
