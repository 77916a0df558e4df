import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_importing_the_server_never_imports_torch_or_the_other_halves():
    program = (
        "import pkgutil, sys, importlib, server\n"
        "for module in pkgutil.walk_packages(server.__path__, 'server.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "assert 'server.app' in sys.modules and 'onnxruntime' in sys.modules\n"
        "print(sorted({'torch', 'dst_core', 'sim_bridge', 'gymnasium', 'mujoco'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
