"""What the container images and the compose file promise, as far as it can be checked without a container engine."""

import json
import os
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@dataclass(frozen=True)
class Instruction:
    name: str
    value: str


def stages_of_dockerfile() -> dict[str, list[Instruction]]:
    text = "\n".join(line for line in (DEPLOY / "Dockerfile").read_text().splitlines() if not line.startswith("#"))
    stages: dict[str, list[Instruction]] = {}
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if not line.strip():
            continue
        name, value = line.split(maxsplit=1)
        if name == "FROM":
            base, _, stage = value.partition(" AS ")
            stages[stage] = [Instruction(name, base), *stages.get(base, [])]
        else:
            stages[stage].append(Instruction(name, value))
    return stages


STAGES = stages_of_dockerfile()
IMAGES = [service["build"]["target"] for service in COMPOSE["services"].values()]


def last(stage: str, name: str) -> str:
    return [instruction.value for instruction in STAGES[stage] if instruction.name == name][-1]


def commands() -> list[tuple[str, list[str]]]:
    """Every command line that a container is started with: (script, arguments)."""
    lines = [(json.loads(last("server", "ENTRYPOINT"))[0], json.loads(last("server", "CMD")))]
    for service in COMPOSE["services"].values():
        entry = json.loads(last(service["build"]["target"], "ENTRYPOINT"))[0]
        lines += [(entry, service["command"])]
    return lines


def test_copied_sources_exist_and_reach_the_build_context() -> None:
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    sources = [
        source.rstrip("/")
        for instruction in STAGES["build"]
        if instruction.name == "COPY"
        for source in instruction.value.split()[:-1]
    ]
    assert "pyproject.toml" in sources
    for source in sources:
        assert (ROOT / source).exists(), f"the Dockerfile copies {source}, which is not in the repository"
        assert f"!{source}" in ignored, f"the Dockerfile copies {source}, which Dockerfile.dockerignore leaves out"


def test_files_copied_between_stages_come_from_an_earlier_stage() -> None:
    names = list(STAGES)
    for stage, instructions in STAGES.items():
        for instruction in instructions:
            if match := re.match(r"--from=(\S+)", instruction.value):
                assert names.index(match[1]) < names.index(stage)


@pytest.mark.parametrize("image", IMAGES)
def test_image_runs_as_a_numbered_ordinary_user(image: str) -> None:
    user, group = last(image, "USER").split(":")
    assert int(user) > 0
    assert int(group) > 0


def test_installed_extras_and_started_scripts_are_those_of_the_project() -> None:
    extras = re.findall(r"\[(\w+)\]\"", (DEPLOY / "Dockerfile").read_text())
    assert sorted(extras) == ["robot", "serve"]
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    for script, _ in commands():
        assert script in PROJECT["scripts"]


def test_every_installation_is_held_to_the_lock_file() -> None:
    installations = re.findall(r"pip install .*", (DEPLOY / "Dockerfile").read_text())
    assert len(installations) == 2
    assert all("--constraint requirements.lock" in installation for installation in installations)


@pytest.mark.parametrize(("script", "arguments"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_flags_of_started_commands_are_known_to_them(script: str, arguments: list[str]) -> None:
    module, _, function = PROJECT["scripts"][script].partition(":")
    program = f"import sys; from {module} import {function}; sys.exit({function}())"
    shown = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    ).stdout
    for argument in arguments:
        if argument.startswith("--"):
            flag = argument.split("=")[0]
            assert re.search(rf"{re.escape(flag)}\b", shown), f"{script} has no {flag}"


def health_check() -> list[str]:
    check = last("server", "HEALTHCHECK")
    argv: list[str] = json.loads(check[check.index("CMD") + len("CMD") :])
    assert argv[:2] == ["python", "-c"]
    return argv


def test_health_check_asks_the_address_that_the_server_listens_on() -> None:
    argv = health_check()
    arguments = COMPOSE["services"]["server"]["command"]
    port = arguments[arguments.index("--http") + 1].rpartition(":")[2]
    assert f"http://127.0.0.1:{port}/readyz" in argv[2]


@pytest.mark.parametrize("status", [200, 503])
def test_health_check_says_what_the_server_says_whatever_proxy_the_container_is_told_of(status: int) -> None:
    class Readiness(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Readiness) as server:
        threading.Thread(target=server.serve_forever).start()
        program = health_check()[2].replace("8080", str(server.server_port))
        proxies = dict.fromkeys(("http_proxy", "HTTP_PROXY", "all_proxy"), "http://127.0.0.1:9")
        check = subprocess.run([sys.executable, "-c", program], env={**os.environ, **proxies}, timeout=60, check=False)
        server.shutdown()
    assert (check.returncode == 0) == (status == 200)


def test_ports_are_published_on_loopback_only_and_match_the_server() -> None:
    arguments = COMPOSE["services"]["server"]["command"]
    listened = {arguments[arguments.index(flag) + 1].rpartition(":")[2] for flag in ("--grpc", "--http")}
    published = [port.split(":") for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert {host for host, _, _ in published} == {"127.0.0.1"}
    assert {inside for _, _, inside in published} == listened


def test_robot_waits_for_a_healthy_server_and_finds_it_by_service_name() -> None:
    robot = COMPOSE["services"]["robot"]
    assert robot["depends_on"] == {"server": {"condition": "service_healthy"}}
    address = next(argument.split("=", 1)[1] for argument in robot["command"] if argument.startswith("--server="))
    host, port = address.split(":")
    assert host in COMPOSE["services"]
    server = COMPOSE["services"][host]["command"]
    assert server[server.index("--grpc") + 1].endswith(f":{port}")


def test_bundle_is_mounted_read_only_where_the_server_looks_for_it() -> None:
    [volume] = COMPOSE["services"]["server"]["volumes"]
    assert volume["read_only"] is True
    assert volume["target"] == COMPOSE["services"]["server"]["command"][0]


@pytest.mark.parametrize("service", COMPOSE["services"])
def test_container_has_no_privileges_and_cannot_write_its_image(service: str) -> None:
    settings = COMPOSE["services"][service]
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in settings["security_opt"]


def test_shell_steps_of_the_images_are_well_formed() -> None:
    steps = [instruction.value for stage in STAGES.values() for instruction in stage if instruction.name == "RUN"]
    assert steps
    for step in steps:
        script = re.sub(r"^--mount=\S+\s+", "", step)
        assert shlex.split(script)
        subprocess.run(["sh", "-n", "-c", script], check=True, timeout=10)
