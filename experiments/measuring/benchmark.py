"""Measure speed and memory beside what one would use instead: python -m experiments.measuring.benchmark

startup    seconds from starting Python to the end of the first update, with an empty compilation cache and again
training   tokens per second, milliseconds per update, share of the device's peak arithmetic, peak memory
decoding   tokens per second: of prompts of 64, up to the first token written, and of 120 written after 8
memory     GiB that an update needs, by XLA's own account of the compiled program; nothing is run
input      milliseconds to make a batch

The contestants (`peers/`) do the same work in turns, in processes of their own. PyTorch and Hugging Face
come with the extra `bench`: pip install 'tinygpt_jax[bench]'
"""

import datetime
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from experiments import cli, presets
from experiments.measuring.peers import OURS, TRAINERS, WRITERS, Contestant
from experiments.measuring.peers.turns import MemoryTurns, TrainingTurns, Turns, WritingTurns
from experiments.measuring.tables import Spread, Table, print_table, spread
from tinygpt_jax.config import Config, ModelConfig, TrainingConfig
from tinygpt_jax.devices import HUGE_PAGES, TUNABLES, describe_devices
from tinygpt_jax.errors import UsageError

Size = Literal["quickstart", "small", "small-gpt2", "tinystories"]
What = Literal["startup", "training", "decoding", "memory", "input"]

# All have the reference's layers: post-norm, ReLU, sinusoids, dropout of 0.1, a context of 128.
_SMALL = ModelConfig(vocab_size=2048, n_layers=4, n_heads=4, d_model=256, d_ff=1024)
SIZES: dict[Size, ModelConfig] = {
    "quickstart": replace(_SMALL, vocab_size=1024, d_model=128, d_ff=512),
    "small": _SMALL,
    "small-gpt2": replace(_SMALL, vocab_size=50_257),
    "tinystories": presets.get("tinystories").config.model,
}
# Decoding: prompt length, tokens written after it, and of which of the two the rate is.
WRITING = {"prompt": (64, 1, 64), "written": (8, 120, 120)}
# Memory: what a user can change about an update.
SAVINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gradient accumulation of 4": {"gradient_accumulation": 4},
    "remat": {"remat": True},
    "remat and accumulation of 4": {"remat": True, "gradient_accumulation": 4},
}


@dataclass(frozen=True)
class Arguments:
    """Measure training, decoding, start-up and input beside other libraries, in turns in one run."""

    sizes: tuple[Size, ...] = ("quickstart", "small")  # tinystories is the reference system
    what: tuple[What, ...] = get_args(What)
    repeats: int = 5  # turns of each contestant
    batch_size: int = 32  # rows per update
    rows: tuple[int, ...] = (1, 16, 64)  # texts written side by side
    peers: bool = True  # also other libraries, those that are installed
    huge_pages_for_all: bool = False  # give other libraries the pages of 2 MiB that our commands ask for, too
    torch_compile: bool = False  # also PyTorch under torch.compile, which takes minutes to compile on a CPU
    json: bool = False  # print one JSON object and no tables


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, measure, and print each table when it is done."""
    arguments = cli.parse(Arguments, argv)
    for name in ("repeats", "batch_size"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"{name} {getattr(arguments, name)}: must be at least 1")
    if wrong := [rows for rows in arguments.rows if rows < 1]:
        raise UsageError(f"rows {wrong[0]}: must be at least 1")
    measurements = {
        "startup": measure_startup,
        "training": measure_training,
        "decoding": measure_decoding,
        "memory": measure_memory,
        "input": measure_input,
    }
    report: dict[str, Any] = {"date": datetime.date.today().isoformat(), "sizes": {}}
    with tempfile.TemporaryDirectory() as caches:
        for size in arguments.sizes:
            config = Config(model=SIZES[size], training=TrainingConfig(batch_size=arguments.batch_size))
            report["sizes"][size] = {}
            for what in arguments.what:
                table = measurements[what](config, arguments, Path(caches) / size)
                report["sizes"][size][what] = table
                if not arguments.json:
                    print_table(f"{what}, {_describe(size, config)}", table)
    # Last, because JAX keeps most of a GPU's memory for the process that asks.
    report["device"] = describe_devices()
    print(json.dumps(report, indent=2) if arguments.json else f"\nmeasured on {report['device']}, {report['date']}")


def measure_startup(config: Config, arguments: Arguments, caches: Path) -> Table:
    """Start each contestant twice."""
    table: Table = {}
    for contestant in _present(TRAINERS, arguments):
        table[contestant.name] = {}
        for cache in ("cold", "warm"):
            start = time.perf_counter()
            with _trainer(contestant, config, arguments, caches) as turns:
                turns.ask("seconds_per_update")
                table[contestant.name][f"{cache}, s"] = time.perf_counter() - start
    return table


def measure_training(config: Config, arguments: Arguments, caches: Path) -> Table:
    """Let all contestants take turns of about a second."""
    from tinygpt_jax.training.metrics import flops_per_token

    tokens = config.training.batch_size * config.model.context_length
    flops = tokens * flops_per_token(config.model)
    table: Table = {}
    with ExitStack() as stack:
        present = _present(TRAINERS, arguments)
        turns = {c.name: stack.enter_context(_trainer(c, config, arguments, caches)) for c in present}
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        peaks: list[float] = []
        for name in turns:
            for _ in range(2):  # the first compiles
                turns[name].ask("seconds_per_update")
        for _ in range(arguments.repeats):
            for name in turns:
                seconds[name].append(turns[name].ask("seconds_per_update"))
            peaks.append(turns[OURS.name].ask("trainer", "peak_flops"))
        for name, taken in seconds.items():
            table[name] = {
                "tokens/s": tokens / statistics.median(taken),
                "ms/update": spread(1000 * x for x in taken),
                "share of peak": flops / statistics.median(taken) / statistics.median(peaks),
                "peak GiB": turns[name].ask("peak_memory") / 2**30,
                "ours is faster by": _ratio(taken, seconds[OURS.name]),
            }
    return table


def measure_decoding(config: Config, arguments: Arguments, caches: Path) -> Table:
    """Let all contestants take turns at each task. All write greedily, and end no text early."""
    table: Table = {}
    with ExitStack() as stack:
        present = _present(WRITERS, arguments)
        turns = {
            c.name: stack.enter_context(
                Turns(WritingTurns, c.file, config.model, environment=_environment(c, arguments, caches))
            )
            for c in present
        }
        for rows in arguments.rows:
            for task, (prompt, length, counted) in WRITING.items():
                seconds: dict[str, list[float]] = {c.name: [] for c in present if rows <= c.most_rows}
                for turn in range(arguments.repeats + 1):
                    for name, taken in seconds.items():
                        taken.append(turns[name].ask("seconds", rows, prompt, length))
                    if turn == 0:  # it compiled
                        seconds = {name: [] for name in seconds}
                for name, taken in seconds.items():
                    table[f"{task}, {rows} side by side: {name}"] = {
                        "tokens/s": spread(rows * counted / x for x in taken),
                        "ours is faster by": _ratio(taken, seconds[OURS.name]),
                    }
    return table


def measure_memory(config: Config, arguments: Arguments, caches: Path) -> Table:
    """Compile our update with each way to save memory: what is there all the time, and what comes and goes."""
    table: Table = {}
    with Turns(MemoryTurns, OURS.file, environment=_environment(OURS, arguments, caches)) as turns:
        for name, settings in SAVINGS.items():
            if arguments.batch_size % settings.get("gradient_accumulation", 1) == 0:
                training = replace(config.training, **settings)
                kept, temporary = turns.ask("bytes_of_update", replace(config, training=training))
                table[name] = {"state, GiB": kept / 2**30, "at most, GiB": (kept + temporary) / 2**30}
    return table


def measure_input(config: Config, arguments: Arguments, caches: Path) -> Table:
    """Make batches of 20,000 stories of TinyStories' lengths: on demand, and prepared ahead by threads."""
    from tinygpt_jax.data.batches import Rows, TrainingBatches
    from tinygpt_jax.data.corpus import Split

    lengths = np.random.default_rng(0).integers(120, 330, 20_000)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    split = Split(np.zeros(offsets[-1], np.uint16), offsets, n_bytes=0, entropy=None)
    table: Table = {}
    for layout in ("padded", "packed"):
        rows = Rows(split, layout, config.model.context_length, end_of_text=0)
        batches = TrainingBatches(rows, config.training.batch_size, seed=0)
        ahead = batches.iterate()
        repeats = range(arguments.repeats)
        table[layout] = {
            "on demand, ms": spread(_milliseconds(batches.__getitem__) for _ in repeats),
            "ahead, ms": spread(_milliseconds(lambda _, ahead=ahead: next(ahead)) for _ in repeats),
        }
    return table


def _milliseconds(make_batch: Callable[[int], Any], batches: int = 50) -> float:
    """For one of many batches."""
    start = time.perf_counter()
    for step in range(batches):
        make_batch(step)
    return 1000 * (time.perf_counter() - start) / batches


def _trainer(contestant: Contestant, config: Config, arguments: Arguments, caches: Path) -> Turns:
    environment = _environment(contestant, arguments, caches)
    return Turns(TrainingTurns, contestant.file, config, contestant.options, environment=environment)


def _environment(contestant: Contestant, arguments: Arguments, caches: Path) -> dict[str, str]:
    cache = str(caches / contestant.name)
    environment = {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share a GPU's memory
    }
    # Our commands ask Linux for large pages; the others run as their users would start them.
    if contestant is not OURS and not arguments.huge_pages_for_all and os.environ.get(TUNABLES) == HUGE_PAGES:
        environment[TUNABLES] = ""
    return environment


def _present(contestants: Sequence[Contestant], arguments: Arguments) -> list[Contestant]:
    """Those that are wanted and installed; says who is missing."""
    wanted = [c for c in contestants if arguments.torch_compile or "compiled" not in c.options]
    wanted = wanted if arguments.peers else [OURS]
    missing = [c for c in wanted if importlib.util.find_spec(c.library) is None]
    for contestant in missing:
        print(f"{contestant.name} is not installed: pip install 'tinygpt_jax[bench]'", file=sys.stderr)
    return [c for c in wanted if c not in missing]


def _ratio(theirs: list[float], ours: list[float]) -> Spread:
    """How many times as long, turn by turn: what slows the machine down for a while slows both."""
    return spread(a / b for a, b in zip(theirs, ours, strict=True))


def _describe(size: str, config: Config) -> str:
    m = config.model
    shape = f"{m.n_layers} layers x {m.d_model}, vocabulary {m.vocab_size:,}"
    return f"{size}: {shape}, {config.training.batch_size} x {m.context_length} tokens an update"


if __name__ == "__main__":
    cli.run(main)
