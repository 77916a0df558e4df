import subprocess

import gymnasium
import pytest

from sim_bridge.client import PolicyClient
from tests.sim_bridge import node
from tests.sim_bridge.blocking_aio import BlockingAioClient
from tests.sim_bridge.probe import Probe
from tests.sim_bridge.scripted_policy import RunningServer, ScriptedPolicy


@pytest.fixture
def server():
    running = RunningServer(ScriptedPolicy("Pendulum-v1"))
    running.start()
    yield running
    running.die()


@pytest.fixture(params=[PolicyClient, BlockingAioClient], ids=["sync", "asyncio"])
def connect(request):
    """Makes a client for an address, of either kind."""
    return request.param


@pytest.fixture(scope="session")
def controller(tmp_path_factory):
    """Starts the example controller in Node.js with the given options."""
    program = node.installed(tmp_path_factory)

    def start(address, *options):
        command = ["node", program, "--server", address, *options]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture
def probe():
    """Gymnasium id of `Probe`."""
    gymnasium.register("Probe-v0", entry_point=Probe)
    yield "Probe-v0"
    del gymnasium.registry["Probe-v0"]
