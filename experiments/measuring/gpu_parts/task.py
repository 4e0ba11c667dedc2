"""What all parts are told."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from experiments.measuring.benchmark import SIZES, Arguments, Measurement
from experiments.measuring.peers import OURS
from experiments.measuring.tables import Table
from tinygpt_jax.config import Config, TrainingConfig


@dataclass(frozen=True)
class Task:
    """What is measured, and where."""

    out: Path  # folder of results, prepared stories and compiled programs
    source: str  # the stories of whole runs
    updates: int  # of each whole run
    repeats: int  # turns of each contestant
    quick: bool  # a small model and little of everything, on any device
    begun: float  # when the command began, as files tell the time

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows of an update."""
        return (2, 4) if self.quick else (32, 256)

    @property
    def cache(self) -> Path:
        """Prepared stories, and below the name of each contestant its compiled programs."""
        return self.out / "cache"

    @property
    def compiled(self) -> Path:
        """Our compiled programs, which parts share."""
        return self.cache / OURS.name

    def config(self, batch_size: int) -> Config:
        """Of an update."""
        model = SIZES["quickstart" if self.quick else "tinystories"]
        return Config(model=model, training=TrainingConfig(batch_size=batch_size))

    def measurement(self, batch_size: int) -> Measurement:
        """The benchmark, of one size."""
        rows = (1, 2) if self.quick else (1, 16, 64)
        arguments = Arguments(repeats=self.repeats, batch_size=batch_size, rows=rows, torch_compile=not self.quick)
        return Measurement(self.config(batch_size).model, arguments, self.cache)

    def environment(self) -> dict[str, str]:
        """Of every process that computes. Without `quick` JAX must find a GPU, or fail."""
        own = {"JAX_COMPILATION_CACHE_DIR": str(self.compiled), "TINYGPT_CACHE": str(self.cache)}
        return {**os.environ, **own, **({} if self.quick else {"JAX_PLATFORMS": "cuda,cpu"})}


Piece = tuple[str, Table]  # a title, and what was found
Part = Callable[[Task], Iterator[Piece]]
