import pytest

from tests.sim_bridge.scripted_policy import RunningServer, ScriptedPolicy


@pytest.fixture
def server():
    running = RunningServer(ScriptedPolicy("Pendulum-v1"))
    running.start()
    yield running
    running.die()
