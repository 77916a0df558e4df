"""Replay memory of real transitions, in tensors on the training device."""

import torch
from torch import Tensor

from dst_core.world_model import Transition


class Replay:
    """A ring of transitions; the oldest are overwritten."""

    def __init__(self, *, capacity: int, observation_size: int, action_size: int, device: torch.device) -> None:
        self.capacity = capacity
        self.device = device
        self.added = 0
        self._rows = Transition(
            torch.empty(capacity, observation_size, device=device),
            torch.empty(capacity, action_size, device=device),
            torch.empty(capacity, device=device),
            torch.empty(capacity, observation_size, device=device),
            torch.empty(capacity, device=device),
        )

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, transition: Transition) -> None:
        """Keep one transition, given as a batch of one."""
        for kept, new in zip(self._rows, transition, strict=True):
            kept[self.added % self.capacity] = new[0]
        self.added += 1

    def sample(self, batch: int, generator: torch.Generator) -> Transition:
        """Draw B transitions uniformly with replacement.

        Raises:
            ValueError: if fewer than `batch` transitions are kept.
        """
        if len(self) < batch:
            raise ValueError(f"the replay must hold a batch of {batch} transitions, it holds {len(self)}")
        index = torch.randint(len(self), (batch,), generator=generator, device=self.device)
        return Transition(*(rows[index] for rows in self._rows))

    def state(self) -> dict[str, Tensor]:
        """The rows kept, and how many were ever added."""
        kept = {name: rows[: len(self)].contiguous() for name, rows in self._rows._asdict().items()}
        return {**kept, "added": torch.tensor(self.added)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.added = int(state["added"])
        for name, rows in self._rows._asdict().items():
            rows[: len(self)] = state[name]
