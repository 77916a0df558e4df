"""The grid of an experiment: a TOML file of variants and sweeps, checked as a whole before anything runs."""

import shlex
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final, TypeGuard

import torch

from benchmarks.experiments.errors import ExperimentError
from benchmarks.experiments.flags import arguments_of, configure, flatten, misfits, out_of_range
from benchmarks.experiments.results import UNDISTURBED
from dst_core.config import MAX_SEED, TrainConfig
from dst_core.run import Run
from sim_bridge.tasks import TaskError, describe_task, make_task
from sim_bridge.tasks.perturbations import parse_perturbation

TOP_KEYS: Final = ("seeds", "variants", "sweep")
SWEEP_KEYS: Final = ("environments", "perturbations", "variants", "steps", "longer", "train", "seeds")


@dataclass(frozen=True, kw_only=True)
class GridRun:
    """One run of a grid."""

    environment: str
    perturbation: str
    """"none" or name=scale, several in the order of their names."""
    variant: str
    config: TrainConfig

    @property
    def setting(self) -> str:
        """environment/perturbation."""
        return f"{self.environment}/{self.perturbation}"

    @property
    def id(self) -> str:
        """environment/perturbation/variant/seed-N, also the path of its directory."""
        return f"{self.setting}/{self.variant}/seed-{self.config.seed}"

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of dst-train, without --out."""
        return arguments_of(self.config)

    @property
    def command(self) -> str:
        """That reproduces the run, for a shell."""
        return shlex.join(("dst-train", *self.arguments))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One entry of the grid's sweeps, its names and types checked."""

    name: str
    environments: Sequence[str]
    perturbations: Sequence[tuple[str, ...]]
    variants: Sequence[str]
    steps: Mapping[str, int]
    """By variant."""
    train: Mapping[str, Any]
    """Flattened flags."""
    seeds: Sequence[int]


def by_setting(runs: Iterable[GridRun]) -> dict[str, dict[str, list[GridRun]]]:
    """Runs by setting and variant, each in the order in which it first comes."""
    settings: dict[str, dict[str, list[GridRun]]] = {}
    for run in runs:
        settings.setdefault(run.setting, {}).setdefault(run.variant, []).append(run)
    return settings


def read_grid(path: Path) -> tuple[GridRun, ...]:
    """The runs of a grid, in its order.

    Raises:
        ExperimentError: naming everything that is wrong with it.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(
            f"{path} cannot be read: {error.strerror}; name a grid, such as docs/results/grid.toml"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path} is no TOML: {error}") from error
    reading = _Reading(table)
    runs = reading.runs()
    if wrong := reading.wrong:
        count = "1 fault" if len(wrong) == 1 else f"{len(wrong)} faults"
        raise ExperimentError("\n  ".join((f"{path} has {count}, nothing was run:", *wrong)))
    return runs


class _Reading:
    """One pass over a grid that goes on after a fault."""

    def __init__(self, table: dict[str, Any]) -> None:
        self.table = table
        self.faults: dict[str, None] = {}  # each once, in order
        self.variants = self._variants()
        self.possible: dict[tuple[str, tuple[str, ...]], bool] = {}

    @property
    def wrong(self) -> tuple[str, ...]:
        return tuple(self.faults)

    def fault(self, where: str, message: str) -> None:
        self.faults[f"{where}: {message}" if where else message] = None

    def runs(self) -> tuple[GridRun, ...]:
        for name in sorted(self.table.keys() - {*TOP_KEYS}):
            self.fault("", f"unknown entry {name!r}; a grid has {', '.join(TOP_KEYS)}")
        seeds = self._seeds("", self.table["seeds"]) if "seeds" in self.table else None
        sweeps = self.table.get("sweep")
        if not (isinstance(sweeps, list) and sweeps and all(isinstance(sweep, dict) for sweep in sweeps)):
            self.fault("", "there must be at least one [[sweep]]")
            return ()
        runs: dict[str, GridRun] = {}
        origin: dict[str, str] = {}
        for number, entry in enumerate(sweeps, 1):
            sweep = self._sweep(f"sweep {number}", entry, seeds)
            for run in self._runs_of(sweep):
                if run.id in runs:
                    self.fault(
                        sweep.name, f"{run.id} is already a run of {origin[run.id]}; name its variant differently"
                    )
                runs[run.id], origin[run.id] = run, sweep.name
        return tuple(runs.values())

    def _variants(self) -> dict[str, dict[str, Any]]:
        variants = self.table.get("variants")
        if not (isinstance(variants, dict) and variants):
            self.fault("", "there must be at least one variant, such as\n    [variants]\n    dst = {}")
            return {}
        read = {}
        for name, table in variants.items():
            where = f"variant {name!r}"
            if name != name.strip() or name in ("", ".", "..") or "/" in name or not name.isprintable():
                self.fault(where, "its name must be fit for a directory: no '/', no spaces at its ends")
            read[name] = self._flags(where, table)
        return read

    def _flags(self, where: str, table: object) -> dict[str, Any]:
        if not isinstance(table, dict):
            self.fault(where, f"must be a table of flags of dst-train, got {table!r}")
            return {}
        flags = flatten(table)
        wrong = list(misfits(flags))
        for message in wrong:
            self.fault(where, message)
        return flags if not wrong else {name: value for name, value in flags.items() if not [*misfits({name: value})]}

    def _sweep(self, name: str, entry: dict[str, Any], seeds: list[int] | None) -> Sweep:
        for key in sorted(entry.keys() - {*SWEEP_KEYS}):
            self.fault(name, f"unknown entry {key!r}; a sweep has {', '.join(SWEEP_KEYS)}")
        if "seeds" in entry:
            seeds = self._seeds(name, entry["seeds"])
        elif seeds is None and "seeds" not in self.table:
            self.fault(name, "seeds are missing; give seeds = [0, 1, 2] to it, or once at the top of the grid")
        variants = self._names(name, entry, "variants")
        for variant in variants:
            if variant not in self.variants and self.variants:
                self.fault(name, f"unknown variant {variant!r}; [variants] has {', '.join(self.variants)}")
        steps = self._count(name, "steps", entry.get("steps"))
        longer = entry.get("longer", {})
        if not isinstance(longer, dict):
            self.fault(name, f"longer must be a table of variants and steps, got {longer!r}")
            longer = {}
        for variant in sorted(longer.keys() - {*variants}):
            self.fault(name, f"longer names {variant!r}, which is no variant of this sweep")
        return Sweep(
            name=name,
            environments=self._names(name, entry, "environments"),
            perturbations=self._perturbations(name, entry.get("perturbations", [[]])),
            variants=[variant for variant in variants if variant in self.variants],
            steps={
                variant: self._count(name, f"longer.{variant}", longer[variant]) if variant in longer else steps
                for variant in variants
            },
            train=self._flags(f"{name}, train", entry.get("train", {})),
            seeds=seeds or [],
        )

    def _names(self, where: str, entry: dict[str, Any], key: str) -> list[str]:
        names = entry.get(key)
        if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
            came = "they are missing" if names is None else f"got {names!r}"
            self.fault(where, f"{key} must be a list of at least one name, {came}")
            return []
        for name in _repeated(names):
            self.fault(where, f"{key} names {name!r} twice")
        return list(dict.fromkeys(names))

    def _seeds(self, where: str, seeds: object) -> list[int]:
        if not (isinstance(seeds, list) and seeds):
            self.fault(where, f"seeds must be a list of at least one whole number, got {seeds!r}")
            return []
        for seed in seeds:
            if not (_is_whole(seed) and 0 <= seed <= MAX_SEED):
                self.fault(where, f"seeds must be whole numbers in 0..{MAX_SEED}, got {seed!r}")
        for seed in _repeated(seeds):
            self.fault(where, f"seeds name {seed!r} twice")
        return [seed for seed in dict.fromkeys(seeds) if _is_whole(seed) and 0 <= seed <= MAX_SEED]

    def _count(self, where: str, key: str, count: object) -> int:
        if _is_whole(count) and count >= 1:
            return count
        self.fault(
            where,
            f"{key} must be a whole number of at least 1, {'it is missing' if count is None else f'got {count!r}'}",
        )
        return 0

    def _perturbations(self, where: str, choices: object) -> list[tuple[str, ...]]:
        if not (isinstance(choices, list) and choices and all(_is_texts(texts) for texts in choices)):
            self.fault(
                where, f'perturbations must be a list of lists such as [[], ["observation=0.2"]], got {choices!r}'
            )
            return []
        read = []
        for texts in choices:
            try:
                parsed = sorted((parse_perturbation(text) for text in texts), key=lambda one: one.name)
            except TaskError as error:
                self.fault(where, str(error))
            else:
                read.append(tuple(f"{one.name}={one.scale:.15g}" for one in parsed))
        for perturb in _repeated(read):
            self.fault(where, f"perturbations name {_label(perturb)} twice")
        return list(dict.fromkeys(read))

    def _runs_of(self, sweep: Sweep) -> Iterator[GridRun]:
        started: set[tuple[object, ...]] = set()
        for env, perturb, variant in product(sweep.environments, sweep.perturbations, sweep.variants):
            if not (self._is_possible(sweep, env, ()) and self._is_possible(sweep, env, perturb)):
                continue
            if not sweep.steps[variant]:
                continue
            flags = {**sweep.train, **self.variants[variant]}
            refused = out_of_range(env, flags, steps=sweep.steps[variant], perturb=perturb)
            for flag, message in refused:
                if flag in self.variants[variant]:
                    self.fault(f"variant {variant!r}", message)
                elif flag in sweep.train:
                    self.fault(f"{sweep.name}, train", message)
                else:
                    self.fault(f"{sweep.name}, {variant!r} in {env}", message)
            if refused:
                continue
            for seed in sweep.seeds:
                config = configure(env, flags, steps=sweep.steps[variant], perturb=perturb, seed=seed)
                if (kind := (env, perturb, config.agent)) not in started:
                    started.add(kind)
                    if not self._can_start(f"{sweep.name}, {variant!r} in {env}", config):
                        break
                yield GridRun(environment=env, perturbation=_label(perturb), variant=variant, config=config)

    def _is_possible(self, sweep: Sweep, env: str, perturb: tuple[str, ...]) -> bool:
        """Whether the task can be made; a fault once if not."""
        if (env, perturb) not in self.possible:
            try:
                task = make_task(env, perturbations=perturb)
                describe_task(task)
                task.close()
            except TaskError as error:
                self.fault(sweep.name, str(error))
                self.possible[env, perturb] = False
            else:
                self.possible[env, perturb] = True
        return self.possible[env, perturb]

    def _can_start(self, where: str, config: TrainConfig) -> bool:
        try:
            Run.start(config, torch.device("cpu"))
        except ValueError as error:  # TaskError and TrainingError are
            self.fault(where, str(error))
            return False
        return True


def _label(perturb: tuple[str, ...]) -> str:
    return " ".join(perturb) or UNDISTURBED


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _repeated(values: Sequence[Any]) -> list[Any]:
    return [value for index, value in enumerate(values) if value in values[:index]]
