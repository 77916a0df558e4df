"""What the clients need: Python, numpy 1 or 2, grpcio and protobuf."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration.conftest import ServerProcess

ROOT = Path(__file__).parents[2]
ALONE = Path(__file__).with_name("client_alone.py")
OBSERVATION = ("0.1", "-0.2", "0.3")


def decided_alone(python, address, path):
    """The actions that clients in a process of their own are given."""
    done = subprocess.run(
        [python, ALONE, address, *OBSERVATION],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_clients_need_nothing_but_numpy_grpcio_and_protobuf(server):
    actions = decided_alone(sys.executable, server.address, ROOT)
    expected = server.policy.act(np.array(OBSERVATION, np.float32))
    np.testing.assert_allclose(actions, [expected] * 4, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("numpy", "major"), [("numpy<2", "1"), ("numpy>=2", "2")])
def test_clients_work_with_numpy_1_and_2_and_no_other_package(tmp_path, bundle, numpy, major):
    """Only the folders of the client are there, in an environment of its own, against the real server."""
    for folder in ("protos", "sim_bridge"):
        shutil.copytree(ROOT / folder, tmp_path / "source" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True, timeout=120)
    python = tmp_path / "venv/bin/python"
    install = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:", numpy, "grpcio", "protobuf>=6,<7"]
    installed = subprocess.run(install, check=False, capture_output=True, text=True, timeout=280)
    if installed.returncode != 0:
        pytest.skip(f"the packages cannot be installed: {installed.stderr.strip().splitlines()[-1]}")
    version = subprocess.run(
        [python, "-c", "import numpy; print(numpy.__version__)"], check=True, capture_output=True, text=True
    ).stdout
    assert version.startswith(f"{major}.")
    server = ServerProcess(bundle)
    try:
        actions = decided_alone(python, server.grpc, tmp_path / "source")
    finally:
        assert server.stop() == 0
    assert len(actions) == 4
    assert actions == [actions[0]] * 4
    assert np.isfinite(actions).all()
