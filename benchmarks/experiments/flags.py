"""Flags of dst-train as a table: which there are, what they take, and the command line that says the same."""

import dataclasses
import difflib
import types
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal, cast, get_args, get_origin, get_type_hints

from dst_core.agent_config import AgentConfig
from dst_core.config import TrainConfig
from dst_core.presets import preset_of

AGENT: Final = "agent."
ELSEWHERE: Final = {
    "env": "it comes from the sweep's environments",
    "perturb": "it comes from the sweep's perturbations",
    "steps": "it comes from the sweep's steps and longer",
    "seed": "it comes from seeds",
    "out": "every run has its own directory",
    "resume": "runs under way are resumed by themselves",
    "video": "film a single run with its own command",
    "device": "experiments train on the CPU, one core per run",
}


def _kinds() -> dict[str, Any]:
    """Type of every flag that a table may set; those of the agent as agent.NAME."""
    run = {name: kind for name, kind in get_type_hints(TrainConfig).items() if name not in {*ELSEWHERE, "agent"}}
    return run | {AGENT + name: kind for name, kind in get_type_hints(AgentConfig).items()}


KINDS: Final = _kinds()


def flatten(table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of flags with its nested agent as agent.NAME."""
    agent = table.get("agent", {})
    if not isinstance(agent, dict):
        return dict(table)
    return {name: value for name, value in table.items() if name != "agent"} | {
        AGENT + name: value for name, value in agent.items()
    }


def misfits(flags: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the names and types of flattened flags, one message each."""
    for name, value in flags.items():
        if name in ELSEWHERE:
            yield f"{name} cannot be set here: {ELSEWHERE[name]}"
        elif name == "agent":
            yield f"agent must be a table such as {{ hidden = 64 }}, got {value!r}"
        elif name not in KINDS:
            close = difflib.get_close_matches(name, KINDS, n=2, cutoff=0.6)
            hint = f"did you mean {' or '.join(close)}?" if close else "dst-train --help lists them"
            yield f"dst-train has no flag {name}; {hint}"
        elif not _fits(value, KINDS[name]):
            yield f"{name} must be {_words(KINDS[name])}, got {value!r}"


def _fits(value: object, kind: object) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is types.UnionType:
        return any(_fits(value, one) for one in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float)
    return isinstance(kind, type) and isinstance(value, kind)


def _words(kind: object) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is types.UnionType:
        return " or ".join(_words(one) for one in get_args(kind) if one is not types.NoneType)
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(cast(type, kind), "a text")


def configure(
    env: str, flags: Mapping[str, Any], *, steps: int, perturb: tuple[str, ...], seed: int = 0
) -> TrainConfig:
    """The preset of a task with flattened flags and the grid's own choices on top.

    Raises:
        ValueError: if one is out of its range.
    """
    preset = preset_of(env)
    typed: dict[str, Any] = {name: float(value) if KINDS[name] is float else value for name, value in flags.items()}
    agent = {name.removeprefix(AGENT): value for name, value in typed.items() if name.startswith(AGENT)}
    run = {name: value for name, value in typed.items() if not name.startswith(AGENT)}
    return dataclasses.replace(
        preset,
        **run,
        steps=steps,
        perturb=perturb,
        seed=seed,
        device="cpu",
        agent=dataclasses.replace(preset.agent, **agent),
    )


def out_of_range(
    env: str, flags: Mapping[str, Any], *, steps: int, perturb: tuple[str, ...]
) -> list[tuple[str | None, str]]:
    """Every flag that `configure` refuses, with its message; None for a choice that is no flag.

    A configuration names one fault at a time, so the flag it names is taken out and the rest looked at again.
    """
    left, found = dict(flags), list[tuple[str | None, str]]()
    while True:
        try:
            configure(env, left, steps=steps, perturb=perturb)
        except ValueError as error:
            name = str(error).split()[0]
            flag = next((flag for flag in (name, AGENT + name) if flag in left), None)
            if flag is not None:
                found.append((flag, str(error).replace(name, flag, 1)))
                del left[flag]
                continue
            if name not in {flag.removeprefix(AGENT) for flag, _ in found if flag}:
                found.append((None, str(error)))
        return found


def arguments_of(config: TrainConfig) -> tuple[str, ...]:
    """Arguments of dst-train that give this configuration: task, steps and seed, and what differs from the task's preset."""
    preset = preset_of(config.env)
    words = ["--env", config.env, "--steps", str(config.steps), "--seed", str(config.seed)]
    if config.perturb:
        words += ["--perturb", *config.perturb]
    words += ["--device", config.device]
    for name in KINDS:
        of_agent = name.startswith(AGENT)
        field = name.removeprefix(AGENT)
        value, usual = (getattr(one.agent if of_agent else one, field) for one in (config, preset))
        if value != usual:
            words += _flag(name.replace("_", "-"), value)
    return tuple(words)


def _flag(name: str, value: object) -> list[str]:
    if isinstance(value, bool):
        prefix, dot, last = name.rpartition(".")
        return [f"--{prefix}{dot}{'' if value else 'no-'}{last}"]
    return [f"--{name}", str(value)]
