"""Lists of variants of a recipe, from ablations.toml, as configurations that see as many tokens. For `ablation`."""

import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments import cli, presets, train
from tinygpt_jax.config import Config
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.files import read_text

LISTS = Path(__file__).with_name("ablations.toml")
_NOT_OF_A_VARIANT = ("--seed", "--workdir")


@dataclass(frozen=True)
class Variant:
    """One row of a table: a way to train."""

    name: str
    on: str | None  # the name of the variant that its flags are added to; None of the first, which is the base
    added: str  # its flags, beyond those of that variant
    flags: str  # all of its flags
    config: Config

    @property
    def folder(self) -> str:
        """Its name as one of a folder."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.name).strip("-.").lower()

    @property
    def updates(self) -> int:
        """How many there are in a run."""
        return self.config.training.steps or 1


def read_list(name: str, source: str | None = None, steps: int | None = None) -> list[Variant]:
    """The variants of a list of `LISTS`, the base first.

    Args:
        name: of the list.
        source: stories for all of them, in place of their own.
        steps: updates of the base, in place of its own; those of the others change in proportion.

    Raises:
        UsageError: there is no such list, or its flags cannot work.
        UserError: the file is damaged.
    """
    try:
        lists = tomllib.loads(read_text(LISTS))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{LISTS} is damaged: {error}") from None
    if name not in lists:
        raise UsageError(f"--list {name}: there is no such list; there are {', '.join(lists) or 'none'}")
    base, texts = (lists[name].get(part) for part in ("base", "variants"))
    if not isinstance(base, str) or not isinstance(texts, dict) or not texts or set(map(type, texts.values())) != {str}:
        raise UserError(f"{LISTS}: the list {name} needs a text, base, and a table of at least one text, variants")
    try:
        return _variants(base, texts, source, steps)
    except UsageError as error:
        raise UsageError(f"list {name}, {error}") from None


def _variants(base: str, texts: dict[str, str], source: str | None, steps: int | None) -> list[Variant]:
    found: dict[str, Variant] = {}
    start = configured(base)
    base_steps = start.training.steps
    if base_steps is None:
        raise UsageError("base: give it --steps, so that the others can see as many tokens")
    first = before = next(iter(texts))
    if texts[first].strip():
        raise UsageError(f"{first}: the first variant is the base itself, without flags")
    for name, text in texts.items():
        on, plus, added = text.rpartition("+ ") if "+ " in text else ("", "", text)
        on = on.strip() or (before if plus else first)
        if name != first and on not in found:
            raise UsageError(f"{name}: there is no variant {on} before it")
        flags = base if name == first else f"{found[on].flags} {added.strip()}"
        if own := [flag for flag in _NOT_OF_A_VARIANT if _given(flags, flag)]:
            raise UsageError(f"{name}: {own[0]} is not a variant's: every run has a folder and a seed of its own")
        try:
            config = configured(flags)
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from None
        own_steps = len(_given(flags, "--steps")) > len(_given(base, "--steps"))
        updates = config.training.steps if own_steps else base_steps * _places(start) / _places(config)
        updates = max(1, round((updates or 1) * (steps or base_steps) / base_steps))
        # As many evaluations, wherever that is.
        every = max(1, round(config.training.eval_every * updates / base_steps))
        training = replace(config.training, steps=updates, eval_every=every)
        data = config.data if source is None else replace(config.data, source=source)
        config = replace(config, training=training, data=data)
        found[name] = Variant(name, None if name == first else on, added.strip(), flags, config)
        before = name
    folders = [variant.folder for variant in found.values()]
    if len(set(folders)) < len(folders) or "" in folders:
        raise UsageError(f"variants: their names make no different folders: {', '.join(folders)}")
    return list(found.values())


def configured(flags: str) -> Config:
    """The configuration that `experiments.train` makes of flags with a preset.

    Raises:
        UsageError: they cannot work.
    """
    argv = shlex.split(flags)
    start = cli.parse(train.Start, argv, others=True)
    if start.preset is None:
        raise UsageError("base: give it a --preset")
    return train.with_config(train.Arguments, argv, start, presets.get(start.preset).config).config


def _given(flags: str, name: str) -> Sequence[str]:
    return [word for word in shlex.split(flags) if word.partition("=")[0] == name]


def _places(config: Config) -> int:
    """Tokens of an update, with the padding of rows that have some."""
    return config.training.batch_size * config.model.context_length
