"""Contestants in processes of their own, and what is timed there."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from tinygpt_jax.config import Config, ModelConfig
from tinygpt_jax.errors import UserError

TURN_SECONDS = 1.0  # a turn of training lasts about this long


class Turns:
    """One of the classes below in a new process; use it in a `with`.

    Raises:
        UserError: from `ask`, when the other side fails.
    """

    def __init__(self, kind: type, contestant: str, *arguments: Any, environment: dict[str, str]) -> None:
        """Return at once; the process begins with importing the contestant's libraries under `environment`."""
        context = get_context("spawn")
        self._contestant = contestant
        self._connection, other_end = context.Pipe()
        job = (other_end, kind, (contestant, *arguments))
        self._process = context.Process(target=_serve, args=job, daemon=True)
        with _environment(environment):
            self._process.start()
        other_end.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """Call a method over there."""
        try:
            self._connection.send((method, arguments))
            done, result = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            raise UserError(f"{self._contestant} ended with exit code {code} (-9: killed, out of memory?)") from None
        if not done:
            raise UserError(f"{self._contestant} failed: {result}")
        return result

    def __enter__(self) -> "Turns":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.join()


class TrainingTurns:
    """A trainer and batches for it."""

    def __init__(self, contestant: str, config: Config, options: dict[str, Any]) -> None:
        self._trainer = import_module(f"experiments.measuring.peers.{contestant}").Trainer(config, **options)
        self._batches = [random_batch(config, seed) for seed in range(8)]
        self._updates = 0  # in a turn

    def seconds_per_update(self) -> float:
        """Take a turn. The first is the first update, which compiles; the second sets how long the others are.

        The others begin with an update that is not timed, since a virtual machine may have given the memory that this
        process does not hold between updates to its host while others had their turn: getting it back takes a second.
        """
        if self._updates:
            self._trainer.train(self._batches[:1])
        self._updates = self._updates or 1
        batches = [self._batches[i % len(self._batches)] for i in range(self._updates)]
        start = time.perf_counter()
        self._trainer.train(batches)
        seconds = (time.perf_counter() - start) / self._updates
        self._updates = max(1, round(TURN_SECONDS / seconds))
        return seconds

    def trainer(self, method: str) -> Any:
        """Ask the trainer itself."""
        return getattr(self._trainer, method)()

    def peak_memory(self) -> int:
        """Bytes: of the device's memory where it has its own, else of this process."""
        return _peak_memory()


class WritingTurns:
    """A writer and prompts for it."""

    def __init__(self, contestant: str, model: ModelConfig) -> None:
        self._writer = import_module(f"experiments.measuring.peers.{contestant}").Writer(model)
        self._vocab_size = model.vocab_size

    def seconds(self, rows: int, prompt_length: int, length: int) -> float:
        """Take a turn: `length` tokens after each of `rows` random prompts."""
        prompts = np.random.default_rng(0).integers(0, self._vocab_size, (rows, prompt_length), np.int32)
        start = time.perf_counter()
        written = self._writer.write(prompts, length)
        seconds = time.perf_counter() - start
        assert written.shape == (rows, length)
        return seconds


class MemoryTurns:
    """What an update of a trainer needs, without running one."""

    def __init__(self, contestant: str) -> None:
        self._analyse = import_module(f"experiments.measuring.peers.{contestant}").bytes_of_update

    def bytes_of_update(self, config: Config) -> tuple[int, int]:
        """Bytes that stay from update to update, and bytes that an update needs beside them."""
        return self._analyse(config)


def random_batch(config: Config, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int32 `[batch, context]`. Token r has probability in proportion to 1 / (r + 1), as words do:
    an embedding's gradient takes longer where tokens repeat."""
    weights = 1 / np.arange(1, config.model.vocab_size + 1)
    shape = (config.training.batch_size, config.model.context_length + 1)
    rows = np.random.default_rng(seed).choice(len(weights), shape, p=weights / weights.sum()).astype(np.int32)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """What a process that starts here inherits: some of it is read before its first line of Python."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(connection: Connection, kind: type, arguments: tuple) -> None:
    """Answer until the other end is closed."""
    sys.stdout = sys.stderr  # standard output is for the table
    turns = None
    while True:
        try:
            method, its_arguments = connection.recv()
        except EOFError:
            return
        try:
            turns = turns or kind(*arguments)
            result = (True, getattr(turns, method)(*its_arguments))
        except Exception as error:  # goes on as a UserError over there
            result = (False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        connection.send(result)


def _peak_memory() -> int:
    import resource

    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated()
    elif "jax" in sys.modules:
        import jax

        if statistics := jax.devices()[0].memory_stats():
            return statistics["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
