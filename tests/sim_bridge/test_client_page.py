"""docs/client.md: what it shows runs against a real server."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sim_bridge.errors import RequestRefusedError, ServerOverloadedError, ServerUnreachableError
from sim_bridge.exchange import LAST_BACKOFF_S, REFUSED_BACKOFF_S, Outcome
from tests.integration.conftest import ServerProcess

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/client.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SHELL = re.search(r"```sh\n(.*?)```", PAGE, re.DOTALL)[1]
ADDRESS = "127.0.0.1:50051"


@pytest.fixture(scope="module")
def address(bundle):
    server = ServerProcess(bundle)
    yield server.grpc
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("code", "shown"), list(zip(PYTHON, (("server clock", "return"), ("candidate",)), strict=True))
)
def test_python_examples_run(address, code, shown):
    assert code.count(ADDRESS) == 1
    program = [sys.executable, "-c", code.replace(ADDRESS, address)]
    done = subprocess.run(program, cwd=ROOT, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(text in done.stdout for text in ("action", *shown))


def test_node_command_runs(controller, address):
    place, install, command = SHELL.splitlines()
    assert (place, install) == ("cd sim_bridge/node_controller", "npm ci")
    node, program, server, default, *options = command.split()
    assert (node, program, server, default) == ("node", "controller.mjs", "--server", ADDRESS)
    process = controller(address, *options)
    assert '"ticks":20' in process.communicate(timeout=60)[0]


def test_numbers_and_names_are_those_of_the_code():
    assert f"at most {LAST_BACKOFF_S:g} s apart, {REFUSED_BACKOFF_S:g} s where" in PAGE
    for outcome in Outcome:
        assert f"`{outcome.value}`" in PAGE
    for error in (RequestRefusedError, ServerOverloadedError, ServerUnreachableError):
        assert f"`{error.__name__}`" in PAGE
