"""Start, training and decoding beside PyTorch and Hugging Face, in turns."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from experiments.measuring.benchmark import WRITING
from experiments.measuring.gpu_parts.task import Piece, Task
from experiments.measuring.peers import OURS, TRAINERS, WRITERS
from experiments.measuring.peers.turns import updates
from tinygpt_jax.errors import UserError

_PYTORCH = tuple(contestant for contestant in TRAINERS if contestant.library == "torch")
_COMPILED = {contestant.name for contestant in _PYTORCH if "compiled" in contestant.options}
_WRITERS = tuple(contestant for contestant in WRITERS if contestant.name in (OURS.name, "Hugging Face"))


def startup(task: Task) -> Iterator[Piece]:
    """From starting Python to the end of the first update, with nothing compiled before and again.

    What was compiled before is put aside for it, and what it compiles serves the other parts.
    """
    aside = task.cache / "aside"
    if task.compiled.exists():
        shutil.rmtree(aside, ignore_errors=True)
        task.compiled.rename(aside)
    batch_size = task.batch_sizes[0]
    yield f"startup, {batch_size} rows an update", task.measurement(batch_size).startup((OURS,))
    if aside.exists():
        shutil.copytree(aside, task.compiled, dirs_exist_ok=True)


def training(task: Task) -> Iterator[Piece]:
    """Updates of each batch size, of which the first, which compile, are told apart."""
    with ExitStack() as stack:
        races = {}
        for batch_size in task.batch_sizes:
            measurement = task.measurement(batch_size)
            asks = stack.enter_context(measurement.processes((OURS, *_PYTORCH), "Trainer"))
            races[batch_size] = (
                measurement,
                asks,
                {name: updates(ask, measurement.config) for name, ask in asks.items()},
            )
        first = _first_updates({batch_size: turns for batch_size, (_, _, turns) in races.items()})
        for batch_size, (measurement, asks, turns) in races.items():
            able = {name: turn for name, turn in turns.items() if isinstance(first[batch_size, name], float)}
            table = measurement.race(asks, able, uncounted=1)
            for name in turns:
                table.setdefault(name, {})["first update, s"] = first[batch_size, name]
            yield f"training, {batch_size} rows an update", table


def decoding(task: Task) -> Iterator[Piece]:
    """Writing one text, and several side by side."""
    tasks = {"written": WRITING["written"]}
    yield "decoding", task.measurement(task.batch_sizes[0]).decoding(_WRITERS, tasks)


def _first_updates(turns: Mapping[int, Mapping[str, Callable[[], float]]]) -> dict[tuple[int, str], float | str]:
    """For each batch size and contestant the seconds of the first update, or why there was none.

    One after the other, since XLA chooses kernels by timing them; but what `torch.compile` does is work for the CPU,
    and done for all batch sizes side by side.
    """

    def first(key: tuple[int, str]) -> float | str:
        batch_size, name = key
        try:
            return turns[batch_size][name]()
        except UserError as error:
            return f"failed: {error}"

    keys = [(batch_size, name) for batch_size in turns for name in turns[batch_size]]
    compiled = [(batch_size, name) for batch_size, name in keys if name in _COMPILED]
    with ThreadPoolExecutor() as pool:
        seconds = dict(zip(compiled, pool.map(first, compiled), strict=True))
    return seconds | {key: first(key) for key in keys if key not in compiled}
