"""A small policy server of our own: it speaks the wire contract and misbehaves on request."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np

from protos import policy_pb2 as pb
from protos.codec import channels_to_proto, contract_fingerprint
from protos.policy_pb2_grpc import PolicyServiceServicer, add_PolicyServiceServicer_to_server
from sim_bridge.tasks import describe_task, make_task

Answer = Callable[["ScriptedPolicy", pb.Observation], Iterator[pb.ControlDecision]]


def decision_for(observation: pb.Observation, action, status=pb.DECISION_STATUS_OK, error="") -> pb.ControlDecision:
    """A complete decision on one observation."""
    received = time.monotonic_ns()
    return pb.ControlDecision(
        tick=observation.tick,
        status=status,
        error=error,
        decision=pb.Decision(action=action) if status == pb.DECISION_STATUS_OK else None,
        policy_version="v1",
        valid_until_ns=observation.sent_ns + observation.validity_ns,
        sent_ns=observation.sent_ns,
        received_ns=received,
        replied_ns=time.monotonic_ns(),
    )


def well_behaved(policy, observation):
    yield decision_for(observation, policy.act(observation.values))


class ScriptedPolicy(PolicyServiceServicer):
    """A linear policy for one environment; `answer` says how the control stream replies."""

    def __init__(self, environment: str) -> None:
        env = make_task(environment)
        contract = describe_task(env)
        env.close()
        self.description = pb.DescribeResponse(
            policy="scripted",
            policy_version="v1",
            environment=environment,
            observation=channels_to_proto(contract.observation),
            action=channels_to_proto(contract.action),
            contract=contract_fingerprint(contract.observation, contract.action, contract.control_period_s),
            control_period_s=contract.control_period_s,
        )
        rng = np.random.default_rng(0)
        self.gain = rng.normal(size=(len(contract.action), len(contract.observation))).astype(np.float32)
        self.low = np.array([channel.low for channel in contract.action], np.float32)
        self.high = np.array([channel.high for channel in contract.action], np.float32)
        self.answer: Answer = well_behaved
        self.opened: list[pb.OpenSession] = []
        self.observations: list[pb.Observation] = []
        self.acts = 0
        self.refuse_open: tuple[grpc.StatusCode, str] | None = None
        self.retry_after_ms = 0
        self.keeps_promises = True
        self.requests: list[pb.ActRequest | pb.AssessRequest] = []
        self.confirm_open = True
        self.closed_by_client = threading.Event()

    def act(self, observation) -> np.ndarray:
        return np.clip(self.gain @ np.array(observation, np.float32), self.low, self.high)

    def describe(self, request, context):
        if request.policy not in {"", "scripted"}:
            context.abort(grpc.StatusCode.NOT_FOUND, f"policy must be one of scripted, got {request.policy!r}")
        return self.description

    def act_once(self, request, context):
        self.acts += 1
        self.requests.append(request)
        if request.contract not in {"", self.description.contract}:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "contract differs")
        return pb.ActResponse(
            policy="scripted",
            policy_version=self.description.policy_version,
            decision=pb.Decision(action=self.act(request.observation)),
        )

    def assess(self, request, context):
        """The mean return of a candidate is its first number."""
        self.requests.append(request)
        candidates = np.array(request.candidates).reshape(-1, len(self.description.action))
        return pb.AssessResponse(
            policy="scripted",
            assessments=[pb.Assessment(summary=pb.Summary(return_mean=candidate[0])) for candidate in candidates],
        )

    def control(self, request_iterator, context):
        opening = next(request_iterator).open
        self.opened.append(opening)
        if self.refuse_open:
            if self.retry_after_ms:
                context.set_trailing_metadata((("retry-after-ms", str(self.retry_after_ms)),))
            context.abort(*self.refuse_open)
        if not self.confirm_open:
            threading.Event().wait(2.0)
            return
        granted = opening if self.keeps_promises else pb.OpenSession()
        yield pb.ControlResponse(
            opened=pb.SessionOpened(
                session=f"s{len(self.opened)}",
                description=self.description,
                granted_rate_hz=granted.rate_hz,
                granted_latency_ms=granted.latency_ms,
            )
        )
        for request in request_iterator:
            self.observations.append(request.observation)
            for decision in self.answer(self, request.observation):
                yield pb.ControlResponse(decision=decision)
        self.closed_by_client.set()

    Describe, Act, Assess, Control = describe, act_once, assess, control


class RunningServer:
    """The scripted policy behind a real gRPC server on a free port; it can die and come back."""

    def __init__(self, policy: ScriptedPolicy) -> None:
        self.policy = policy
        self.address = "127.0.0.1:0"
        self._server: grpc.Server | None = None

    def start(self) -> None:
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8), options=[("grpc.so_reuseport", 1)])
        add_PolicyServiceServicer_to_server(self.policy, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(self.address)}"
        self._server.start()

    def die(self) -> None:
        """Cut every connection and stop listening."""
        if self._server is not None:
            self._server.stop(grace=None).wait(5)
            self._server = None


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for another thread's effect, with a bound that only a failure reaches."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not reached in time"
        threading.Event().wait(0.005)
