"""Several runs beside each other: which belong together, what differs in their settings, and where they ended.

Runs that differ only in their seed, and in what changes no update, are a group: their figures have a mean and a spread.
"""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from tinygpt_jax.config import FREE_TO_CHANGE, Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.report.reference import CURVES, WINDOW, Excursion, Reference, comparable
from tinygpt_jax.runs.record import RunRecord, read_record

# How long a run is changes a schedule, and with it every update.
_SAME_GROUP = FREE_TO_CHANGE - {"steps"} | {"seed"}
_NEVER_SHOWN = {"seed", "vocab_size", "sha256", "cache_dir"}


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed at most."""

    name: str
    records: Mapping[str, RunRecord]  # by their folders, as given
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)  # folder -> that of the run that it repeats

    @property
    def config(self) -> Config:
        """That of the first run."""
        return next(record.config for record in self.records.values() if record.config)

    def last(self, curve: str) -> list[float]:
        """The last value of each run that has this curve."""
        return [record.curves[curve][-1][1] for record in self.records.values() if record.curves[curve]]

    def best(self) -> list[float]:
        """The lowest validation loss of each run."""
        curves = (record.curves["validation_loss"] for record in self.records.values())
        return [min(value for _, value in curve) for curve in curves if curve]

    def steps(self) -> dict[str, int]:
        """Folder -> how many updates are logged of it."""
        curves = {folder: record.curves["loss"] for folder, record in self.records.items()}
        return {folder: int(curve[-1][0]) if curve else 0 for folder, curve in curves.items()}

    def furthest(self) -> "Group":
        """Those of the runs that have come as far as any: the figures of others are of other stretches."""
        steps = self.steps()
        there = {folder: record for folder, record in self.records.items() if steps[folder] == max(steps.values())}
        return dataclasses.replace(self, records=there)

    def rate(self) -> list[float]:
        """Tokens per second, the median of each run."""
        curves = (record.curves["tokens_per_second"] for record in self.records.values())
        return [median(value for _, value in curve) for curve in curves if curve]


@dataclass(frozen=True)
class Verdict:
    """What the reference curves say of a run."""

    reference: str | None  # the preset's name
    excursions: Sequence[Excursion]
    why_not: str | None = None  # it cannot be compared

    def __str__(self) -> str:
        if self.why_not:
            return f"not compared with reference curves: {self.why_not}"
        if not self.excursions:
            return f"inside the bands of {self.reference}, as far as it goes"
        return f"OUTSIDE the bands of {self.reference}: {'; '.join(map(str, self.excursions))}"


def read_groups(folders: Sequence[Path]) -> list[Group]:
    """The runs in groups, in the order in which they are given.

    A folder that is given twice, by whatever path, counts once, and so does a run that repeats another: the same seed
    and the same losses say nothing of the spread.

    Raises:
        UserError: a folder holds no run, or its configuration cannot be read.
    """
    groups: list[dict[str, RunRecord]] = []
    copies: dict[str, str] = {}
    different: dict[str, Path] = {}
    for folder in folders:
        different.setdefault(os.path.realpath(folder), folder)
    for folder in different.values():
        record = read_record(folder)
        if record.config is None:
            raise UserError(f"{folder}: {'; '.join(record.problems)}; leave the run out, or mend its config.json")
        for group in groups:
            first = next(iter(group.values()))
            same_stories = first.corpus.get("fingerprint") == record.corpus.get("fingerprint")
            if same_stories and first.config and not record.config.differences(first.config, _SAME_GROUP):
                if repeated := next((name for name, other in group.items() if _repeats(record, other)), None):
                    copies[str(folder)] = repeated
                else:
                    group[str(folder)] = record
                break
        else:
            groups.append({str(folder): record})
    return [
        Group(name, records, {copy: first for copy, first in copies.items() if first in records})
        for name, records in zip(_names(groups), groups, strict=True)
    ]


def _repeats(record: RunRecord, other: RunRecord) -> bool:
    curves = ("loss", "validation_loss")
    return _seed(record) == _seed(other) and all(record.curves[name] == other.curves[name] for name in curves)


def _seed(record: RunRecord) -> int | None:
    return record.config.training.seed if record.config else None


def _names(groups: Sequence[Mapping[str, RunRecord]]) -> list[str]:
    """A folder that holds a group's runs and no others names it; else the runs themselves, without what all share."""
    if len({os.path.isabs(folder) for group in groups for folder in group}) > 1:  # which have nothing in common
        groups = [{os.path.abspath(folder): record for folder, record in group.items()} for group in groups]
    everyone = [folder for group in groups for folder in group]
    shared = os.path.commonpath([os.path.dirname(folder) or "." for folder in everyone]) if len(everyone) > 1 else ""
    names = []
    for group in groups:
        parent = os.path.commonpath(list(group)) if len(group) > 1 else next(iter(group))
        others = [folder for folder in everyone if folder not in group]
        inside = [folder for folder in others if os.path.commonpath([parent, folder]) == parent]
        whole = [parent] if not inside and parent not in ("", ".", "/", shared) else list(group)
        names.append(", ".join(os.path.relpath(name, shared or ".") if shared else name for name in whole))
    return names


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Setting -> its value in each group, of those that are not the same everywhere."""
    settings = [[_settings(record) for record in group.records.values()] for group in groups]
    found = {}
    for name in settings[0][0]:
        values = [list(dict.fromkeys(run[name] for run in runs)) for runs in settings]
        if len({value for each in values for value in each}) > 1:
            found[name] = [", ".join(each) for each in values]
    return found


def _settings(record: RunRecord) -> dict[str, str]:
    found: dict[str, str] = {}
    for group, values in dataclasses.asdict(record.config or Config()).items():
        for name, value in values.items():
            if name not in _NEVER_SHOWN:
                found[f"{group}.{name}"] = "not set" if value is None else str(value)
    return found


def verdict(record: RunRecord, references: Sequence[Reference]) -> Verdict:
    """What those reference curves that a run can be compared with say of it; there is at least one preset's."""
    if not any(comparable(record, curve) for curve in CURVES):
        return Verdict(None, (), f"it has logged no {WINDOW} updates yet, and no evaluation")
    for reference in references:
        if reference.why_not(record) is None:
            return Verdict(reference.preset, reference.excursions(record))
    # The one with the most settings in common says what is not as it should be.
    nearest = min(references, key=lambda other: len(record.config.differences(other.config)) if record.config else 0)
    return Verdict(None, (), nearest.why_not(record))


def told(verdicts: Mapping[str, Verdict]) -> list[str]:
    """A line for each verdict, with the runs that it is of."""
    folders: dict[str, list[str]] = {}
    for folder, each in verdicts.items():
        folders.setdefault(str(each), []).append(folder)
    return [f"{', '.join(names) if len(folders) > 1 else 'all runs'}: {text}" for text, names in folders.items()]


def figures(group: Group) -> dict[str, Any]:
    """Final figures of a group's runs, of those that have come as far as any.

    Each is (mean, sample standard deviation or None), losses in nats per token.
    """
    group = group.furthest()
    found: dict[str, Any] = {"runs": len(group.records), "steps": max(group.steps().values(), default=0)}
    values = {
        "training loss": group.last("loss"),
        "validation loss": group.last("validation_loss"),
        "best validation loss": group.best() if group.best() != group.last("validation_loss") else [],
        "bits per byte": bits_per_byte(group),
        "accuracy": group.last("validation_accuracy"),
        "tokens per second": group.rate(),
    }
    for name, each in values.items():
        found[name] = (fmean(each), stdev(each) if len(each) > 1 else None) if each else None
    return found


def bits_per_byte(group: Group) -> list[float]:
    """The last validation loss of each run in bits per byte of the rows that are evaluated."""
    found = []
    for record in group.records.values():
        size, curve = record.number("evaluated_bytes_per_token"), record.curves["validation_loss"]
        if size and curve:
            found.append(curve[-1][1] / math.log(2) / size)
    return found


def remarks(groups: Sequence[Group]) -> Iterator[str]:
    """What to know before the figures are compared."""
    stories = {record.corpus.get("fingerprint") for group in groups for record in group.records.values()}
    if len(stories) > 1 or len({group.config.model.vocab_size for group in groups}) > 1:
        yield "These runs learn from different stories or in different vocabularies: compare bits per byte, not nats."
    for group in groups:
        for copy, first in group.copies.items():
            yield f"{copy} has the seed and the losses of {first}: the two count as one run."
        steps = group.steps()
        for folder, step in steps.items():
            if step < max(steps.values()):
                yield f"{folder} is at step {step:,} and others at {max(steps.values()):,}: not in the figures."
        seeds: dict[int | None, list[str]] = {}
        for folder, record in group.furthest().records.items():
            seeds.setdefault(_seed(record), []).append(folder)
        for seed, same in seeds.items():
            if len(same) > 1:
                yield f"{', '.join(same)} have the same seed, {seed}: their spread is not one over seeds."


def problems(groups: Sequence[Group]) -> Iterator[str]:
    """What is missing or damaged in each run's folder, of what is compared."""
    for group in groups:
        for folder, record in group.records.items():
            yield from (f"{folder}: {problem}" for problem in record.problems if "samples.jsonl" not in problem)
