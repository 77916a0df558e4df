"""JSON bodies of clients that send anything: what is wrong is found soon and told in few words, for others wait meanwhile."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

PROBLEMS = 8
"""Told at most."""
NAME = 64
"""Characters told of a field's name, which may be the client's own."""
ENTRIES = 64
"""Of an object whose keys are the client's own."""


def _few(value: object) -> object:
    if isinstance(value, Mapping) and len(value) > ENTRIES:
        raise ValueError(f"must have at most {ENTRIES} entries, got {len(value)}; leave out what is not needed")
    return value


Few = BeforeValidator(_few)
"""Of a dict."""


class RequestBody(BaseModel):
    """A body, or a part of one. Its lists are to be `FailFast` and its dicts `Few`: else every element is found wrong by itself."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def check_count(cls, value: object) -> object:
        """Raises ValueError on more fields than there are."""
        if isinstance(value, Mapping) and len(value) > len(cls.model_fields):
            raise ValueError(
                f"must have no fields but {', '.join(cls.model_fields)}, got {len(value)}; leave the others out"
            )
        return value


def told(problems: Sequence[Any]) -> str:
    """What pydantic found wrong, by the names of the fields."""
    return "; ".join(f"{_place(problem['loc']) or 'body'}: {problem['msg']}" for problem in problems[:PROBLEMS])


def _place(names: Sequence[str | int]) -> str:
    return ".".join(str(name)[:NAME] for name in names)
