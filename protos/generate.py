"""Writes the stubs generated from the .proto files, or checks that the checked-in ones are up to date.

`python -m protos.generate` writes; `python -m protos.generate --check` exits 1 with a summary of what differs.
"""

import argparse
import difflib
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("protos/open_inference.proto", "protos/policy.proto", "protos/record.proto")
OWN_POOL = "protos/open_inference.proto"
"""Its names are public and others' stubs register them too (tritonclient, kserve): in the pool that all stubs share, the
second to be imported would be refused. In a pool of its own both live in one process."""
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def stub_paths(source: str) -> list[str]:
    """Paths, relative to the repository root, of the stubs that one `.proto` file gives."""
    return [source.removesuffix(".proto") + suffix for suffix in SUFFIXES]


def generate(out: Path) -> None:
    """Writes all stubs below `out`, under their paths relative to the repository root.

    Raises:
        FileNotFoundError: a compiler plugin is not installed beside this interpreter.
        subprocess.CalledProcessError: the compiler refused a `.proto` file; its own message says where.
    """
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}"]
    for plugin in ("protoc-gen-mypy", "protoc-gen-mypy_grpc"):
        executable = Path(sys.executable).parent / plugin
        if not executable.exists():
            raise FileNotFoundError(f"{plugin} not found at {executable}; install the 'dev' dependencies")
        command.append(f"--plugin={plugin}={executable}")
    command += [f"--python_out={out}", f"--grpc_python_out={out}", f"--mypy_out=quiet:{out}"]
    command += [f"--mypy_grpc_out=quiet:{out}", *SOURCES]
    subprocess.run(command, cwd=ROOT, check=True)
    stub = out / stub_paths(OWN_POOL)[0]
    shared, own = "_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()"
    stub.write_text(stub.read_text().replace(shared, own, 1))


def differences(generated: Path, checked_in: Path) -> list[str]:
    """One line per stub below `checked_in` that is missing or differs from the one below `generated`."""
    lines = []
    for source in SOURCES:
        for path in stub_paths(source):
            fresh = (generated / path).read_text()
            if not (checked_in / path).exists():
                lines.append(f"{path}: missing")
                continue
            changes = difflib.unified_diff((checked_in / path).read_text().splitlines(), fresh.splitlines(), n=0)
            body = [change for change in changes if not change.startswith(("---", "+++", "@@"))]
            if body:
                added = sum(change.startswith("+") for change in body)
                lines.append(f"{path}: stale, +{added} -{len(body) - added} lines")
    return lines


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m protos.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a stub is stale")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as directory:
        generate(Path(directory))
        stale = differences(Path(directory), ROOT)
    if stale:
        sys.stderr.write("\n".join(stale) + "\nrun `python -m protos.generate` and commit the result\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
