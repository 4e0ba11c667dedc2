"""What a run begins with that goes on from a trained model: its parameters and its vocabulary."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from tinygpt_jax.config import Config, OriginConfig
from tinygpt_jax.errors import UsageError
from tinygpt_jax.exchange import open_model
from tinygpt_jax.runs.checkpoint_files import saved_config, saved_tokenizer
from tinygpt_jax.tokenizer import Tokenizer

_MAY_DIFFER = frozenset({"vocab_size", "dropout"})  # which is the tokenizer's to say; which no parameter depends on


class Origin(NamedTuple):
    """What a run has from where it began. All None: it begins with random parameters."""

    config: OriginConfig
    tokenizer: Tokenizer | None = None
    params: Any = None  # on the host; None too where the run has a checkpoint, which has all there is to know


def find_origin(config: Config, workdir: Path) -> Origin:
    """What `config` says that a run begins with. Once the run has a checkpoint, the other model is not looked at.

    Raises:
        UserError: there is no such model.
        UsageError: the configuration is that of another model, or asks for another vocabulary.
    """
    folder = config.origin.init_from
    if folder is None:
        return Origin(config.origin)
    if saved := saved_config(workdir):
        return Origin(saved.origin, saved_tokenizer(workdir))
    run = open_model(folder)
    theirs = dataclasses.replace(config, model=run.config.model)
    if differing := config.differences(theirs, ignore=_MAY_DIFFER):
        raise UsageError(f"--init-from {folder}: its model is another ({'; '.join(differing)}): leave these flags out")
    asked, given = config.data.vocabulary, run.tokenizer.name
    if asked != given:
        raise UsageError(f"--vocabulary {asked}: the model of {folder} keeps its own, {given}; leave the flag out")
    params = jax.device_get(run.params)
    return Origin(OriginConfig(folder, checksum(params)), run.tokenizer, params)


def checksum(params: Any) -> str:
    """sha256 of every parameter with its name: equal for a run and what was exported of it."""
    sha256 = hashlib.sha256()
    for path, array in jax.tree.leaves_with_path(params):
        sha256.update(jax.tree_util.keystr(path).encode() + np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()
