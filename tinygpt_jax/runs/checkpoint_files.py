"""What a checkpoint's folder tells without its arrays, and whether anything in it has changed since it was written.

`checkpoint` describes the layout. Nothing that is read here is trusted: a folder may come from a stranger. Nor does a
reader hold any lock: the run may be training, and remove the checkpoint that is being read.
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from tinygpt_jax.config import Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import own_checksum, read_text, sync
from tinygpt_jax.runs.folder import Mark, mark_of
from tinygpt_jax.tokenizer import Tokenizer

FORMAT_VERSION = 1
# A file that cannot be read, a stranger's text that is anything, and a name in it that can be no file's.
_FAILURES = (UserError, OSError, LookupError, ValueError, TypeError, AttributeError, OverflowError, RuntimeError)
Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


class FormatError(UserError):
    """A checkpoint is of a format that this program does not know; nothing says that it is damaged."""


class DamageError(UserError):
    """A checkpoint is not what was written."""


class GoneError(UserError):
    """A checkpoint was removed while it was read: the run that trains there has newer ones."""


def while_it_trains(read: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Decorate what reads a run's checkpoints: it begins anew where one was removed before it was read."""

    @functools.wraps(read)
    def again(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        while True:
            with suppress(GoneError):
                return read(*args, **kwargs)

    return again


@dataclass(frozen=True)
class Progress:
    """Where a run stands, apart from its arrays."""

    step: int  # updates done
    corpus: str | None  # fingerprint of the stories; None: it may go on with any that have its vocabulary
    validation_loss: float | None = None  # measured at this step, if it was
    unlogged: tuple[tuple[float, float], ...] = ()  # (loss, gradient norm) of updates since the last metrics line
    files: Mapping[str, Mark] = field(default_factory=dict)  # the files of the run's folder at this step

    def to_json(self) -> str:
        """All of it as one line."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        """Read `to_json`'s form.

        Raises:
            ValueError, TypeError, AttributeError, OverflowError, RecursionError: the text is anything else.
        """
        values = json.loads(text)
        if set(values) != {item.name for item in dataclasses.fields(cls)}:
            raise ValueError("not the form of a run's progress")
        read = cls(**values)
        files = {name: Mark(*mark) for name, mark in read.files.items()}
        counts = [read.step, *(mark.size for mark in files.values())]
        texts = ["" if read.corpus is None else read.corpus, *(mark.sha256 for mark in files.values())]
        if not all(map(_is_count, counts)) or not all(isinstance(text, str) for text in texts):
            raise ValueError("a count or a text is of a wrong type")
        unlogged = tuple((_number(loss), _number(norm)) for loss, norm in read.unlogged)
        loss = None if read.validation_loss is None else _number(read.validation_loss)
        return cls(read.step, read.corpus, loss, unlogged, files)


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint folder. What it returns was compared with its checksum as it was read.

    Raises DamageError: a file is not what was written; GoneError: the folder is there no more; FormatError.
    """

    folder: Path

    @classmethod
    def of(cls, workdir: Path, step: int) -> "Checkpoint":
        """That of a run's folder after so many updates, if it is there."""
        return cls(workdir / "checkpoints" / f"{step:08d}")

    @property
    def step(self) -> int:
        """Updates done when it was written."""
        return int(self.folder.name)

    def config(self) -> Config:
        """The configuration it was trained with."""
        return self._read("config.json", Config.from_json)

    def tokenizer(self) -> Tokenizer:
        """The vocabulary it was trained with."""
        return self._read("tokenizer.json", Tokenizer.from_json)

    def progress(self) -> Progress:
        """Where its run stood."""
        progress = self._read("progress.json", Progress.from_json)
        if progress.step != self.step:
            raise DamageError(f"{self.folder} holds step {progress.step}: it was renamed")
        return progress

    @property
    def validation_loss(self) -> float:
        """For ordering: infinite where it was not measured, is not finite, or cannot be read."""
        with suppress(DamageError, FormatError):
            loss = self.progress().validation_loss
            if loss is not None and math.isfinite(loss):
                return loss
        return math.inf

    def check(self, without: str | None = None) -> None:
        """Compare every file, apart from the arrays in the folder `without`, with its size and sha256.

        Raises:
            DamageError: one has changed, or what they say does not fit together.
        """
        for name, mark in self._manifest().items():
            if without is None or not name.startswith(f"{without}/"):
                self._check(name, mark)
        vocab_size, expected = self.tokenizer().vocab_size, self.config().model.vocab_size
        self.progress()
        if vocab_size != expected:
            raise DamageError(f"{self.folder} has a vocabulary of {vocab_size} tokens and a model of {expected}")

    def problem(self) -> str | None:
        """What `check` finds, or None."""
        try:
            self.check()
        except DamageError as error:
            return str(error)
        return None

    def raise_if_gone(self) -> None:
        """For who has read its arrays, or could not: raise GoneError if it was removed meanwhile."""
        if self not in checkpoints(self.folder.parents[1]):
            raise GoneError(f"{self.folder} was removed while it was read")

    def _read(self, name: str, parse: Callable[[str], Result]) -> Result:
        self._check(name, self._manifest().get(name))
        with self._reading(name):
            return parse(read_text(self.folder / name))

    def _check(self, name: str, mark: Mark | None) -> None:
        path = self.folder / name
        with self._reading(name):
            if mark is None:
                raise ValueError("manifest.json does not list it")
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise ValueError("manifest.json names a file outside its folder")
            found = mark_of(path)
            if found is None:
                raise UserError(f"{path} is missing")
            if found != mark:
                sizes = f"{found.size} bytes now and {mark.size} then"
                how = sizes if found.size != mark.size else "its checksum is another"
                raise UserError(f"{path} has changed since it was written: {how}")

    def _manifest(self) -> dict[str, Mark]:
        path = self.folder / "manifest.json"
        with self._reading(path.name):
            document = json.loads(read_text(path))
            version = document["format_version"]
            if not _is_count(version) or version > 10**6 or document["sha256"] != own_checksum(document):
                raise UserError(f"{path} has changed since it was written")
            if version != FORMAT_VERSION:
                raise FormatError(
                    f"{path} is of format {version!r}, and this program reads format {FORMAT_VERSION}: use the version "
                    "of the program that wrote it"
                )
            return {name: Mark(*mark) for name, mark in document["files"].items()}

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        """Whatever goes wrong inside is damage to this file, or the checkpoint is there no more."""
        try:
            yield
        except (FormatError, DamageError, GoneError):
            raise
        except _FAILURES as error:
            self.raise_if_gone()
            path = str(self.folder / name)
            raise DamageError(str(error) if path in str(error) else f"{path} is damaged: {error}") from None


def checkpoints(workdir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return []
    return [Checkpoint(entry) for entry in sorted(folder.iterdir()) if re.fullmatch("[0-9]{8}", entry.name)]


@while_it_trains
def saved_config(workdir: Path) -> Config | None:
    """The configuration of a run's newest checkpoint that can be read; None where there is no checkpoint.

    Raises:
        UserError: there are checkpoints, and none can be read.
    """
    return _newest_readable(workdir, Checkpoint.config)


@while_it_trains
def saved_tokenizer(workdir: Path) -> Tokenizer | None:
    """The vocabulary of a run, as `saved_config`."""
    return _newest_readable(workdir, Checkpoint.tokenizer)


def _newest_readable(workdir: Path, read: Callable[[Checkpoint], Result]) -> Result | None:
    problem = None
    for checkpoint in reversed(checkpoints(workdir)):
        try:
            return read(checkpoint)
        except DamageError as error:
            problem = problem or error
    if problem:
        raise UserError(f"{workdir} has no intact checkpoint: {problem}")
    return None


def write_manifest(folder: Path) -> None:
    """List every file of a checkpoint, and return when all of it is on the disk."""
    manifest = folder / "manifest.json"
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != manifest]
    files = {path.relative_to(folder).as_posix(): mark_of(path) for path in paths}
    document = {"format_version": FORMAT_VERSION, "files": files}
    manifest.write_text(json.dumps(document | {"sha256": own_checksum(document)}, indent=1) + "\n")
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
