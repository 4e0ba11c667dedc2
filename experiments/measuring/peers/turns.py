"""Contestants in processes of their own, and what is timed there."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context, parent_process
from typing import Any, Literal

import numpy as np

from tinygpt_jax.config import Config
from tinygpt_jax.errors import UserError, first_line

TURN_SECONDS = 1.0  # a turn of training lasts about this long

Kind = Literal["Trainer", "Writer"]
Ask = Callable[..., Any]  # a function of a contestant and more arguments, and these: what it returns over there
Batch = tuple[np.ndarray, np.ndarray]  # inputs and targets, int32 `[batch, context]`


@contextmanager
def in_a_process(
    environment: dict[str, str], file: str, kind: Kind | None, config: Config, **options: Any
) -> Iterator[Ask]:
    """Ask a contestant, or (kind None) the file of one, in a process of its own.

    The process begins at once, with importing the contestant's libraries under `environment`.

    Raises:
        UserError: from asking, when the other side fails.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), _settle) as pool:
        before = dict(os.environ)
        os.environ.update(environment)  # some of it is read before a process's first line of Python
        try:
            begun = pool.submit(_begin, file, kind, config, options)
        finally:
            os.environ.clear()
            os.environ.update(before)

        def ask(question: Callable[..., Any], *arguments: Any) -> Any:
            try:
                begun.result()
                return pool.submit(_answer, question, arguments).result()
            except BrokenProcessPool:
                raise UserError(f"{file}: something ended its process; out of memory?") from None
            except Exception as error:
                raise UserError(f"{file} failed: {type(error).__name__}: {first_line(error)}") from None

        yield ask


def updates(ask: Ask, config: Config) -> Callable[[], float]:
    """A trainer's turns, each of which gives the seconds of an update.

    The first is the first update, which compiles; the second sets how long the others are. These begin with an update
    that is not timed, since a virtual machine may have given the memory that a process does not hold between updates
    to its host while others had their turn: getting it back takes a second.
    """
    batches, count = [random_batch(config, seed) for seed in range(8)], 0

    def turn() -> float:
        nonlocal count
        if count:
            ask(train, batches[:1])
        count = count or 1
        seconds = ask(train, [batches[i % len(batches)] for i in range(count)]) / count
        ask(rest)
        count = max(1, round(TURN_SECONDS / seconds))
        return seconds

    return turn


def random_batch(config: Config, seed: int) -> Batch:
    """Token r has probability in proportion to 1 / (r + 1), as words do: an embedding's gradient takes longer where
    tokens repeat."""
    weights = 1 / np.arange(1, config.model.vocab_size + 1)
    shape = (config.training.batch_size, config.model.context_length + 1)
    rows = np.random.default_rng(seed).choice(len(weights), shape, p=weights / weights.sum()).astype(np.int32)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:])


def train(trainer: Any, batches: Sequence[Batch]) -> float:
    """Seconds of an update with each batch."""
    start, loss = time.perf_counter(), 0.0
    for inputs, targets in batches:
        loss = trainer.update(inputs, targets)
    float(loss)  # which is there when all is done
    return time.perf_counter() - start


def rest(_: Any) -> None:
    """Give the memory of a GPU that PyTorch keeps between updates back, so that the others' turns have room."""
    if "torch" in sys.modules:
        import torch

        torch.cuda.empty_cache()


def write(writer: Any, prompts: np.ndarray, length: int) -> float:
    """Seconds of writing `length` tokens after each prompt."""
    start = time.perf_counter()
    written = writer.write(prompts, length)
    seconds = time.perf_counter() - start
    assert written.shape == (len(prompts), length)
    return seconds


def peak_memory(_: Any) -> int:
    """Bytes: of the device's memory where it has its own, else of this process."""
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


def _settle() -> None:
    """What the process does first: it leaves standard output to the tables, and ends at Ctrl-C and with its parent."""
    sys.stdout, parent = sys.stderr, parent_process()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


_contestant: Any = None  # over there


def _begin(file: str, kind: str | None, config: Config, options: dict[str, Any]) -> None:
    global _contestant
    module = import_module(f"experiments.measuring.peers.{file}")
    _contestant = getattr(module, kind)(config, **options) if kind else module


def _answer(question: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    return question(_contestant, *arguments)
