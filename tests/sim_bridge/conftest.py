import gymnasium
import pytest

from tests.sim_bridge.probe import Probe
from tests.sim_bridge.scripted_policy import RunningServer, ScriptedPolicy


@pytest.fixture
def server():
    running = RunningServer(ScriptedPolicy("Pendulum-v1"))
    running.start()
    yield running
    running.die()


@pytest.fixture
def probe():
    """Gymnasium id of `Probe`."""
    gymnasium.register("Probe-v0", entry_point=Probe)
    yield "Probe-v0"
    del gymnasium.registry["Probe-v0"]
