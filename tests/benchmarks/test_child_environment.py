import pytest

import server
from benchmarks.child_environment import GRPC, child_environment


@pytest.mark.parametrize(("own", "found"), [(server.READ_DIRECTLY, None), ("", ""), ("other", "other")])
def test_a_child_finds_what_the_user_set_and_not_what_importing_the_server_did(own, found, monkeypatch):
    monkeypatch.setenv(GRPC, own)
    assert child_environment().get(GRPC) == found
    assert child_environment({GRPC: "given"})[GRPC] == "given"
