"""Saving behind the updates: training waits for a copy of its state in memory, and not for the disk."""

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax

from tinygpt_jax.config import Config
from tinygpt_jax.distributed.together import is_first
from tinygpt_jax.runs.checkpoint_files import Checkpoint, Progress
from tinygpt_jax.tokenizer import Tokenizer
from tinygpt_jax.training import checkpoint
from tinygpt_jax.training.step import TrainState


class Saver(AbstractContextManager):
    """Writes the checkpoints of a run in a thread, one after the other. For the process that holds the run's lock,
    and for those that train with it: each writes what its devices hold.

    As a context it waits for the save under way, unless a KeyboardInterrupt is to end everything at once.
    """

    def __init__(self, workdir: Path, config: Config, tokenizer: Tokenizer) -> None:
        """Begin the folder of checkpoints, or clear what a killed save left behind there."""
        self._workdir, self._config, self._tokenizer = workdir, config, tokenizer
        self._thread = ThreadPoolExecutor(1, "save")
        self._under_way: Future[Checkpoint] | None = None
        if not is_first():
            return
        folder = workdir / "checkpoints"
        folder.mkdir(exist_ok=True)
        for leftover in (*folder.glob(".writing-*"), *folder.glob(".removing-*")):
            shutil.rmtree(leftover)

    def save(self, state: TrainState, progress: Progress) -> None:
        """`checkpoint.save` behind whatever comes next, which may be an update that consumes `state`.

        Raises:
            UserError: the save before, which is waited for, failed; this one has not begun.
        """
        self.wait()
        # Not on the device, which may have no room for a second state.
        in_host_memory = jax.tree.map(lambda x: x.sharding.with_memory_kind("pinned_host"), state)
        copy = jax.block_until_ready(jax.device_put(state, in_host_memory))
        self._under_way = self._thread.submit(
            checkpoint.save, self._workdir, copy, progress, self._config, self._tokenizer
        )

    def check(self) -> None:
        """Raise the UserError of a save that has failed, and return at once if it has not."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Return when everything is saved, or raise the UserError that says why it is not."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self._thread.shutdown(wait=kind is not KeyboardInterrupt)
        if kind is None:
            self.wait()
