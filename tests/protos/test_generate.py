import pytest

from protos import generate

pytest.importorskip("grpc_tools", reason="the stub compiler is a development dependency")


def test_checked_in_stubs_are_what_the_compiler_gives(tmp_path):
    generate.generate(tmp_path)
    assert generate.differences(tmp_path, generate.ROOT) == []


def test_a_stale_or_missing_stub_is_named_with_its_difference(tmp_path):
    for directory in ("fresh", "old"):
        (tmp_path / directory).mkdir()
        generate.generate(tmp_path / directory)
    stub = tmp_path / "old" / "protos" / "policy_pb2.pyi"
    stub.write_text(stub.read_text() + "edited: int\n")
    (tmp_path / "old" / "protos" / "policy_pb2_grpc.py").unlink()
    assert generate.differences(tmp_path / "fresh", tmp_path / "old") == [
        "protos/policy_pb2.pyi: stale, +0 -1 lines",
        "protos/policy_pb2_grpc.py: missing",
    ]
