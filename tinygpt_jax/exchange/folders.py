"""The folder that a model is written to, and what of a run may lie in it."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from tinygpt_jax.config import Config, DataConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import disk_errors, sync

PARAMETERS, CONFIG = "model.safetensors", "config.json"


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name once it is whole and on the disk, and leaves nothing behind otherwise.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; choose another folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    with disk_errors(folder, "make room or give permission there, or choose another folder"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            yield partial
            for path in partial.iterdir():
                sync(path)
            partial.rename(folder)
        except SafetensorError as error:
            raise UserError(f"cannot write {folder}: {error}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def portable(config: Config) -> Config:
    """Without paths: they say something about one machine, and a stranger's must not decide where we write."""
    source = config.data.source
    if source not in ("builtin", "tinystories"):
        source = Path(source).name or DataConfig.source
    began = config.origin.init_from
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, source=source, cache_dir=None),
        origin=dataclasses.replace(config.origin, init_from=None if began is None else Path(began).name or "."),
    )
