"""Short forms of what tritonclient's modules, which are alike, want to be told."""

from typing import Any

import numpy as np


def inputs(module: Any, rows: np.ndarray, candidates: np.ndarray | None = None, **options: Any) -> list[Any]:
    tensors = {"observation": rows} if candidates is None else {"observation": rows, "action": candidates}
    made = []
    for name, values in tensors.items():
        tensor = module.InferInput(name, list(values.shape), "FP32")
        tensor.set_data_from_numpy(values, **options)
        made.append(tensor)
    return made


def outputs(module: Any, *names: str, **options: Any) -> list[Any]:
    return [module.InferRequestedOutput(name, **options) for name in names]
