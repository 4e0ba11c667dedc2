"""Measure speed and memory beside what one would use instead: python -m experiments.measuring.benchmark

startup    seconds from starting Python to the end of the first update, with an empty compilation cache and again
training   tokens per second, milliseconds per update, share of the device's peak arithmetic, peak memory
decoding   tokens per second: of prompts of 64, up to the first token written, and of 120 written after 8
memory     GiB that an update needs, by XLA's own account of the compiled program; nothing is run
input      milliseconds to make a batch

The contestants (`peers/`) do the same work in turns, in processes of their own. PyTorch and Hugging Face
come with the extra `bench`: pip install -e ".[bench]"
"""

import datetime
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from operator import methodcaller
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from experiments import cli, presets
from experiments.measuring.peers import OURS, TRAINERS, WRITERS, Contestant
from experiments.measuring.peers.turns import Ask, Kind, in_a_process, peak_memory, updates, write
from experiments.measuring.tables import Spread, Table, print_table, spread, take_turns, timed
from tinygpt_jax.config import Config, ModelConfig, TrainingConfig
from tinygpt_jax.devices import HUGE_PAGES, TUNABLES, describe_devices, restart_with_huge_pages
from tinygpt_jax.errors import require

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
    huge_pages_for_all: bool = False  # give other libraries the pages of 2 MiB that we ask for, too
    torch_compile: bool = False  # also PyTorch under torch.compile, which takes minutes to compile on a CPU
    json: bool = False  # print one JSON object and no tables


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, measure, and print each table when it is done."""
    arguments = cli.parse(Arguments, argv)
    for name in ("sizes", "what", "rows"):
        require(getattr(arguments, name) != (), f"--{name}", "without a value", "--help lists what it takes")
    numbers = {"repeats": arguments.repeats, "batch-size": arguments.batch_size, "rows": min(arguments.rows)}
    for name, value in numbers.items():
        require(value >= 1, f"--{name}", value, "must be at least 1")
    report: dict[str, Any] = {"date": datetime.date.today().isoformat(), "sizes": {}}
    with tempfile.TemporaryDirectory() as caches:
        for size in arguments.sizes:
            measurement = Measurement(SIZES[size], arguments, Path(caches) / size)
            tables = report["sizes"][size] = {}
            for what in arguments.what:
                tables[what] = getattr(measurement, what)()
                if not arguments.json:
                    print_table(f"{what}, {size}: {measurement}", tables[what])
    # Last, because JAX keeps most of a GPU's memory for the process that asks.
    report["device"] = describe_devices()
    print(json.dumps(report, indent=2) if arguments.json else f"\nmeasured on {report['device']}, {report['date']}")


class Measurement:
    """Of one size; each method gives a table."""

    def __init__(self, model: ModelConfig, arguments: Arguments, caches: Path) -> None:
        self.config = Config(model=model, training=TrainingConfig(batch_size=arguments.batch_size))
        self._arguments, self._caches = arguments, caches

    def __str__(self) -> str:
        m, rows = self.config.model, self._arguments.batch_size
        shape = f"{m.n_layers} layers x {m.d_model}, vocabulary {m.vocab_size:,}"
        return f"{shape}, {rows} x {m.context_length} tokens an update"

    def startup(self, contestants: Sequence[Contestant] = TRAINERS) -> Table:
        """Start each contestant twice."""

        def start(contestant: Contestant) -> None:
            with self._process(contestant, "Trainer") as ask:
                updates(ask, self.config)()

        present = self._present(contestants)
        return {c.name: {f"{cache}, s": timed(start, c) for cache in ("cold", "warm")} for c in present}

    def training(self) -> Table:
        """Let all contestants take turns of about a second, and with them our product of two large matrices."""
        with self.processes(TRAINERS, "Trainer") as asks:
            return self.race(asks, {name: updates(ask, self.config) for name, ask in asks.items()}, uncounted=2)

    def race(self, asks: Mapping[str, Ask], turns: Mapping[str, Callable[[], float]], uncounted: int) -> Table:
        """Let trainers, ours among them, take their turns, of which the first `uncounted` do not count."""
        tokens = self._arguments.batch_size * self.config.model.context_length
        flops = tokens * self.config.model.flops_per_token
        peaks = {"peak": partial(asks[OURS.name], methodcaller("peak_flops"))}
        measured = take_turns({**turns, **peaks}, self._arguments.repeats, uncounted)
        peak = statistics.median(measured.pop("peak"))
        return {
            name: {
                "tokens/s": tokens / statistics.median(seconds),
                "ms/update": spread(1000 * x for x in seconds),
                "share of peak": flops / statistics.median(seconds) / peak,
                "peak GiB": asks[name](peak_memory) / 2**30,
                "ours is faster by": _ratio(seconds, measured[OURS.name]),
            }
            for name, seconds in measured.items()
        }

    def decoding(
        self, contestants: Sequence[Contestant] = WRITERS, tasks: Mapping[str, tuple[int, int, int]] = WRITING
    ) -> Table:
        """Let all contestants take turns at each task. All write greedily, and end no text early."""
        table: Table = {}
        with self.processes(contestants, "Writer") as asks:
            for rows, (task, (read, length, counted)) in product(self._arguments.rows, tasks.items()):
                prompts = np.random.default_rng(0).integers(0, self.config.model.vocab_size, (rows, read), np.int32)
                able = [c.name for c in contestants if c.name in asks and rows <= c.most_rows]
                turns = {name: partial(asks[name], write, prompts, length) for name in able}
                measured = take_turns(turns, self._arguments.repeats, uncounted=1)  # which compiles
                for name, seconds in measured.items():
                    table[f"{task}, {rows} side by side: {name}"] = {
                        "tokens/s": spread(rows * counted / x for x in seconds),
                        "ours is faster by": _ratio(seconds, measured[OURS.name]),
                    }
        return table

    def memory(self) -> Table:
        """Compile our update with each way to save memory: what is there all the time, and what comes and goes."""
        table: Table = {}
        with self._process(OURS, None) as ask:
            for name, settings in SAVINGS.items():
                if self._arguments.batch_size % settings.get("gradient_accumulation", 1) == 0:
                    config = replace(self.config, training=replace(self.config.training, **settings))
                    kept, temporary = ask(methodcaller("bytes_of_update", config))
                    table[name] = {"state, GiB": kept / 2**30, "at most, GiB": (kept + temporary) / 2**30}
        return table

    def input(self) -> Table:
        """Make batches of 20,000 stories of TinyStories' lengths: on demand, and prepared ahead by threads."""
        from tinygpt_jax.data.batches import Rows, TrainingBatches
        from tinygpt_jax.data.corpus import Split

        lengths = np.random.default_rng(0).integers(120, 330, 20_000)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        split = Split(np.zeros(offsets[-1], np.uint16), offsets, n_bytes=0, entropy=None)

        def milliseconds(take: Callable[[int], Any], many: int = 50) -> Spread:
            turns = (timed(lambda: [take(step) for step in range(many)]) for _ in range(self._arguments.repeats))
            return spread(1000 * seconds / many for seconds in turns)

        table: Table = {}
        for layout in ("padded", "packed"):
            rows = Rows(split, layout, self.config.model.context_length, end_of_text=0)
            batches = TrainingBatches(rows, self._arguments.batch_size, seed=0)
            ahead = batches.iterate()
            table[layout] = {
                "on demand, ms": milliseconds(batches.__getitem__),
                "ahead, ms": milliseconds(lambda _, ahead=ahead: next(ahead)),
            }
        return table

    def _present(self, contestants: Sequence[Contestant]) -> list[Contestant]:
        """Those that are wanted and installed; says who is missing."""
        wanted = [c for c in contestants if self._arguments.torch_compile or "compiled" not in c.options]
        wanted = wanted if self._arguments.peers else [OURS]
        missing = [c for c in wanted if find_spec(c.library) is None]
        for contestant in missing:
            print(f"{contestant.name} is not installed: pip install -e '.[bench]'", file=sys.stderr)
        return [c for c in wanted if c not in missing]

    @contextmanager
    def processes(self, contestants: Sequence[Contestant], kind: Kind) -> Iterator[dict[str, Ask]]:
        """Those that are wanted and installed, by name, each in a process of its own."""
        with ExitStack() as stack:
            yield {c.name: stack.enter_context(self._process(c, kind)) for c in self._present(contestants)}

    def _process(self, contestant: Contestant, kind: Kind | None) -> AbstractContextManager[Ask]:
        cache = str(self._caches / contestant.name)
        environment = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "TORCHINDUCTOR_CACHE_DIR": cache,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several processes share a GPU's memory
        }
        # We have asked Linux for large pages; the others run as their users would start them.
        for_all = contestant is OURS or self._arguments.huge_pages_for_all
        if not for_all and os.environ.get(TUNABLES) == HUGE_PAGES:
            environment[TUNABLES] = ""
        return in_a_process(environment, contestant.file, kind, self.config, **contestant.options)


def _ratio(theirs: list[float], ours: list[float]) -> Spread:
    """How many times as long, turn by turn: what slows the machine down for a while slows both."""
    return spread(a / b for a, b in zip(theirs, ours, strict=True))


if __name__ == "__main__":
    restart_with_huge_pages()
    cli.run(main)
