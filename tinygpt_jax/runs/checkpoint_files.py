"""What a checkpoint's folder tells without its arrays, and whether anything in it has changed since it was written.

`checkpoint` describes the layout. Nothing that is read here is trusted: a folder may come from a stranger.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinygpt_jax.config import Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import own_checksum
from tinygpt_jax.runs.folder import Mark
from tinygpt_jax.tokenizer import Tokenizer

FORMAT_VERSION = 1
_MAX_JSON_BYTES = 64 * 2**20  # no JSON file of a checkpoint comes near this
_NEEDED = ("config.json", "tokenizer.json", "progress.json")


class FormatError(UserError):
    """A checkpoint is of a format that this program does not know; nothing says that it is damaged."""


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
        if not isinstance(values, dict) or set(values) != {item.name for item in dataclasses.fields(cls)}:
            raise ValueError("not the form of a run's progress")
        if not _is_count(values["step"]) or not isinstance(values["corpus"], str | None):
            raise ValueError("step or corpus is of a wrong type")
        if values["validation_loss"] is not None:
            _number(values["validation_loss"])
        unlogged = tuple((_number(loss), _number(norm)) for loss, norm in values["unlogged"])
        files = {name: Mark(*mark) for name, mark in values["files"].items()}
        if not all(_is_count(mark.size) and isinstance(mark.sha256, str) for mark in files.values()):
            raise ValueError("the mark of a file is of a wrong type")
        return cls(**{**values, "unlogged": unlogged, "files": files})


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint folder. What it returns was compared with its checksum as it was read.

    Raises UserError: a file is not what was written.
    """

    folder: Path

    @property
    def step(self) -> int:
        """Updates done when it was written."""
        return int(self.folder.name)

    def config(self) -> Config:
        """The configuration it was trained with."""
        return Config.from_json(self._read("config.json"))

    def tokenizer(self) -> Tokenizer:
        """The vocabulary it was trained with."""
        return Tokenizer.from_json(self._read("tokenizer.json"))

    def progress(self) -> Progress:
        """Where its run stood."""
        text = self._read("progress.json")
        try:
            progress = Progress.from_json(text)
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"{self.folder / 'progress.json'} is damaged: {error}") from None
        if progress.step != self.step:
            raise UserError(f"{self.folder} holds step {progress.step}: it was renamed")
        return progress

    @property
    def validation_loss(self) -> float:
        """For ordering: infinite where it was not measured, is not finite, or cannot be read."""
        try:
            loss = self.progress().validation_loss
        except UserError:
            return math.inf
        return loss if loss is not None and math.isfinite(loss) else math.inf

    def problem(self) -> str | None:
        """What is wrong with its files, or None: each is there, with its size and sha256, and says what it should.

        Raises:
            FormatError: its files are of a format of another version of this program.
        """
        try:
            for name, mark in self._manifest().items():
                self._check(name, mark)
            vocab_size, expected = self.tokenizer().vocab_size, self.config().model.vocab_size
            self.progress()
        except FormatError:
            raise
        except UserError as error:
            return str(error)
        if vocab_size != expected:
            return f"{self.folder} has a vocabulary of {vocab_size} tokens and a model of {expected}"
        return None

    def _read(self, name: str) -> str:
        self._check(name, self._manifest()[name])
        return _read_text(self.folder / name)

    def _check(self, name: str, mark: Mark) -> None:
        path = self.folder / name
        try:
            if not path.resolve().is_relative_to(self.folder.resolve()):
                raise UserError(f"{self.folder / 'manifest.json'} names a file outside its folder: {name}")
            if not path.is_file():
                raise UserError(f"{path} is missing")
            if path.stat().st_size != mark.size:
                raise UserError(f"{path} has {path.stat().st_size} bytes in place of {mark.size}")
            if _sha256(path) != mark.sha256:
                raise UserError(f"{path} has changed since it was written")
        except (OSError, ValueError, RuntimeError) as error:  # it cannot be read, or a name that can be no file's
            raise UserError(f"{path}: {error}") from None

    def _manifest(self) -> dict[str, Mark]:
        path = self.folder / "manifest.json"
        text = _read_text(path)
        try:
            document = json.loads(text)
            version = document["format_version"]
            if not _is_count(version) or version > 10**6 or document["sha256"] != own_checksum(document):
                raise UserError(f"{path} has changed since it was written")
            if version != FORMAT_VERSION:
                raise FormatError(
                    f"{path} is of format {version!r}, and this program reads format {FORMAT_VERSION}: use the version "
                    "of the program that wrote it"
                )
            files = {name: Mark(*mark) for name, mark in document["files"].items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{path} is damaged") from None
        missing = [name for name in _NEEDED if name not in files]
        if missing:
            raise UserError(f"{path} is damaged: it does not list {missing[0]}")
        return files


def checkpoints(workdir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir() if _is_checkpoint_name(entry.name))
    return [Checkpoint(folder / name) for name in names]


def saved_config(workdir: Path) -> Config | None:
    """The configuration of a run's newest checkpoint that can be read; None where there is no checkpoint.

    Raises:
        UserError: there are checkpoints, and none can be read; FormatError: see `Checkpoint.problem`.
    """
    problem = None
    for checkpoint in reversed(checkpoints(workdir)):
        try:
            return checkpoint.config()
        except FormatError:
            raise
        except UserError as error:
            problem = problem or error
    if problem:
        raise UserError(f"{workdir} has no intact checkpoint: {problem}")
    return None


def write_manifest(folder: Path) -> None:
    """List every file of a checkpoint, and return when all of it is on the disk."""
    manifest = folder / "manifest.json"
    files = {}
    for path in sorted(set(_files(folder)) - {manifest}):
        sync(path)
        files[path.relative_to(folder).as_posix()] = Mark(path.stat().st_size, _sha256(path))
    document = {"format_version": FORMAT_VERSION, "files": files}
    document["sha256"] = own_checksum(document)
    manifest.write_text(json.dumps(document, indent=1) + "\n")
    sync(manifest)
    for directory in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        sync(directory)


def sync(path: Path) -> None:
    """Return when a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{path} is not a file")
        if size > _MAX_JSON_BYTES:
            raise UserError(f"{path} is {size} bytes long, more than any run writes")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_checkpoint_name(name: str) -> bool:
    return len(name) == 8 and name.isascii() and name.isdigit()
