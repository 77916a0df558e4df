"""Run in a process of its own: one act and one control session with each client, and nothing imported beyond what those need.

    python client_alone.py ADDRESS A B C      (the observation)

Prints the action of each of the four decisions, as JSON.
"""

import asyncio
import json
import sys
import time
from importlib.abc import MetaPathFinder

# grpcio requires typing-extensions itself.
ALLOWED = {*sys.stdlib_module_names, "numpy", "grpc", "google", "protos", "sim_bridge", "typing_extensions"}


class NothingElse(MetaPathFinder):
    """Finds no module outside the standard library and what the client may need."""

    def find_spec(self, name, path=None, target=None):
        top, _, rest = name.partition(".")
        if top not in ALLOWED or (top == "google" and rest.split(".")[0] not in {"", "protobuf", "_upb"}):
            raise ModuleNotFoundError(f"{name} is not what the client may need", name=name)


sys.meta_path.insert(0, NothingElse())

import numpy as np  # noqa: E402

from sim_bridge.aio_client import AsyncPolicyClient  # noqa: E402
from sim_bridge.client import PolicyClient  # noqa: E402

address, observation = sys.argv[1], np.array(sys.argv[2:], np.float64)
asked = {"tick": 1, "observation": observation, "deadline_ns": time.monotonic_ns() + 30_000_000_000}


async def with_asyncio():
    async with AsyncPolicyClient(address) as client, client.control() as session:
        return await client.act(observation), (await session.decide(**asked)).decision


with PolicyClient(address) as client, client.control() as session:
    answers = [client.act(observation), session.decide(**asked).decision, *asyncio.run(with_asyncio())]
print(json.dumps([list(answer.decision.action) for answer in answers]))
