"""The example controller in Node.js, installed from its lock file outside the repository."""

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = "sim_bridge/node_controller"


def not_possible(reason):
    """Continuous integration must not pass without these tests."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def install(home):
    """What the controller is made of, and what it needs, laid out as in the repository."""
    (home / "protos").mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "protos/policy.proto", home / "protos")
    shutil.copytree(ROOT / HERE, home / HERE, ignore=shutil.ignore_patterns("node_modules"), dirs_exist_ok=True)
    done = subprocess.run(["npm", "ci"], cwd=home / HERE, check=False, capture_output=True, text=True, timeout=240)
    if done.returncode != 0:
        not_possible(f"npm ci must install what the controller needs, got: {done.stderr.strip()[-500:]}")
    (home / "installed").touch()


def installed(tmp_path_factory):
    """The installed program: once, however many processes run the tests."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        not_possible("node and npm must be on the PATH, got none; install Node.js 18.3 or newer with npm")
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    home = shared / "node"
    with (shared / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "installed").exists():
            install(home)
    return home / HERE / "controller.mjs"
