import re
import signal
import socket
from pathlib import Path

import grpc
import httpx
import pytest

from protos import policy_pb2 as pb
from protos.policy_pb2_grpc import PolicyServiceStub
from server.config import ServeConfig, parse_address
from server.errors import AddressError
from tests.server.process import Process, refused
from tests.server.running import PATIENCE_S, Robot


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_and_exits_with_zero(bundle, number):
    with Process(bundle, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0") as server:
        assert httpx.get(f"{server.http}/readyz", timeout=20).status_code == 200
        with Robot(server.grpc) as robot:
            robot.observe(1)
            assert robot.answer().status == pb.DECISION_STATUS_OK
            assert server.stop(number) == 0
            with pytest.raises(grpc.RpcError) as end:
                robot.answer()
            assert end.value.code() is grpc.StatusCode.UNAVAILABLE
            assert end.value.details() == "server is shutting down"
        assert "Traceback" not in server.stderr
        assert "authenticate" not in server.stderr


def test_start_names_policy_version_and_provider(bundle, loaded):
    with Process(bundle, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--provider", "cpu") as server:
        text = "".join(server.output)
        assert "reacher" in text
        assert loaded.manifest.version[:12] in text
        assert "CPU" in text
        server.stop()
        assert "not calibrated" not in server.stderr


def test_start_with_an_uncalibrated_policy_says_so(uncalibrated):
    with Process(uncalibrated, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0") as server:
        server.stop()
        assert (
            "policy reacher is not calibrated: its stated ranges are the critics' own belief; export" in server.stderr
        )


def test_unix_socket_is_served_and_not_taken_over(bundle, tmp_path):
    address = f"unix:{tmp_path}/policy.sock"
    with Process(bundle, "--grpc", address, "--http", "127.0.0.1:0") as server:
        assert server.grpc == address
        with grpc.insecure_channel(address) as channel:
            reply = PolicyServiceStub(channel).Describe(pb.DescribeRequest(), timeout=PATIENCE_S)
            assert reply.policy == "reacher"
        assert "another server listens there" in refused(bundle, "--grpc", address, "--http", "127.0.0.1:0")


def test_listening_on_all_interfaces_is_warned_of(bundle):
    with Process(bundle, "--grpc", "127.0.0.1:0", "--http", "0.0.0.0:0") as server:
        server.stop()
        assert re.search(
            r"--http 0\.0\.0\.0:\d+ can be reached from other machines.*does not authenticate", server.stderr
        )
        assert "--grpc 127" not in server.stderr


@pytest.mark.parametrize("option", ["--grpc", "--http"])
def test_port_in_use_is_refused_in_one_line(bundle, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        addresses = {"--grpc": "127.0.0.1:0", "--http": "127.0.0.1:0", option: address}
        text = refused(bundle, *(part for pair in addresses.items() for part in pair))
    assert f"dst-serve: {option} {address}: Address already in use; stop what listens there or choose" in text
    assert text.count("\n") == 1


def test_damaged_bundle_is_refused_in_one_line(edited):
    (edited / "policy.onnx").write_bytes((edited / "policy.onnx").read_bytes()[:-10])
    text = refused(edited, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert re.fullmatch(r"dst-serve: bundle refused: .*policy.onnx: SHA-256 is .*; copy the bundle again.*\n", text)


def test_two_bundles_of_one_name_are_refused(bundle, edited):
    text = refused(bundle, edited, "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert text.startswith("dst-serve: two bundles hold a policy named 'reacher'; ")


@pytest.mark.parametrize(
    ("text", "loopback"),
    [
        ("127.0.0.1:0", True),
        ("localhost:50051", True),
        ("[::1]:8080", True),
        ("unix:/run/policy.sock", True),
        ("0.0.0.0:80", False),
        ("[::]:80", False),
        ("robot-cell.example:80", False),
    ],
)
def test_address_is_read_as_written_and_known_as_loopback_or_not(text, loopback):
    address = parse_address(text, "--grpc")
    assert str(address) == text
    assert address.loopback is loopback


@pytest.mark.parametrize("text", ["", "127.0.0.1", "127.0.0.1:", ":80", "host:70000", "unix:", "a b:1", "::1:80"])
def test_text_that_is_no_address_is_refused(text):
    with pytest.raises(AddressError, match="--grpc must be HOST:PORT"):
        parse_address(text, "--grpc")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bundles": ()}, "at least one bundle"),
        ({"http": "unix:/tmp/x"}, "a Unix socket is for gRPC only"),
        ({"http": "127.0.0.1:50051"}, "--grpc and --http must differ"),
        ({"max_message_bytes": 10}, "max_message_bytes must lie between"),
    ],
)
def test_configuration_that_cannot_be_served_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ServeConfig(**{"bundles": (Path("x"),), **settings})


def test_wrong_address_on_the_command_line_is_refused_readably(bundle):
    assert "--grpc must be HOST:PORT" in refused(bundle, "--grpc", "nowhere")
