"""Measure the data rooms: python -m experiments.measuring.data_benchmark --part throughput --stories FILE

throughput   text tokenised per second, beside `datasets.map` with tiktoken and beside Hugging Face `tokenizers`
             (pip install tokenizers), in turns in one run
full-size    2.7 million stories: time and memory (pip install psutil) to prepare, to open, and per batch
kills        SIGKILL at random moments of a preparation, again and again: is the result the same to the byte?
"""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import cli
from experiments.measuring.tables import Table, print_table, spread, take_turns, timed
from tinygpt_jax import tokenizer
from tinygpt_jax.config import DataConfig
from tinygpt_jax.data.batches import Rows, TrainingBatches
from tinygpt_jax.data.corpus import default_workers, prepare
from tinygpt_jax.errors import UserError, require
from tinygpt_jax.files import read_text


@dataclass(frozen=True)
class Arguments:
    """Measure how fast stories are prepared and fed, and how safely."""

    stories: Path  # .txt file of real stories separated by <|endoftext|>, to repeat or mix
    part: Literal["throughput", "full-size", "kills"] = "throughput"
    megabytes: int = 200  # throughput, kills: size of the text
    count: int = 2_700_000  # full-size: number of stories
    vocabulary: Literal["gpt2", "compact"] = "gpt2"  # full-size: which
    rounds: int = 3  # throughput: turns of each
    kills: int = 20  # kills: how many


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and measure one part."""
    arguments = cli.parse(Arguments, argv)
    for name in ("megabytes", "count", "rounds", "kills"):
        require(getattr(arguments, name) >= 1, f"--{name}", getattr(arguments, name), "must be at least 1")
    measure, library = PARTS[arguments.part]
    if find_spec(library) is None:
        raise UserError(f"--part {arguments.part} needs {library}: pip install {library}")
    texts = read_text(arguments.stories, most_bytes=sys.maxsize).split("<|endoftext|>")
    stories = [text.strip() for text in texts if text.strip()]
    require(stories != [], "--stories", arguments.stories, "holds no story")
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, stories, Path(folder))


def throughput(arguments: Arguments, stories: list[str], folder: Path) -> None:
    """Ours is timed from the file to the finished corpus; the others from texts in memory to token ids."""
    texts, source = _repeated(stories, arguments.megabytes), folder / "stories.txt"
    megabytes, cores = _write(source, texts) / 1e6, default_workers()
    config = DataConfig(str(source), cache_dir=str(folder / "cache"))
    contestants = {
        "tinygpt_jax, file to corpus": lambda: prepare(config, rebuild=True),
        "datasets.map, encode_ordinary": _datasets_map(texts, folder),
        "tokenizers, encode_batch_fast": _tokenizers_batch(texts),
    }
    seconds = take_turns({name: partial(timed, work) for name, work in contestants.items()}, arguments.rounds)
    table: Table = {name: {"MB/s": spread(megabytes / x for x in taken)} for name, taken in seconds.items()}
    print_table(f"throughput, {megabytes:.0f} MB on {cores} cores", table)


def full_size(arguments: Arguments, stories: list[str], folder: Path) -> None:
    """Stories mixed from the first half of one and the second half of another."""
    import psutil

    source, choose = folder / "stories.txt", random.Random(0)
    pairs = ((choose.choice(stories), choose.choice(stories)) for _ in range(arguments.count))
    size = _write(source, (a[: len(a) // 2] + b[len(b) // 2 :] for a, b in pairs))
    print(f"{arguments.count:,} stories, {size / 1e9:.2f} GB of text, {default_workers()} workers", flush=True)
    config = DataConfig(str(source), arguments.vocabulary, cache_dir=str(folder / "cache"))
    print(f"prepared in {_watched(_start(config))}", flush=True)
    memory = psutil.Process().memory_info
    for when in ("at first", "again"):
        before, seconds = memory().rss / 1e6, timed(prepare, config)
        print(f"{when}: opened in {seconds:.3f} s; the process had {before:.0f} MB and has {memory().rss / 1e6:.0f}")
    corpus = prepare(config)
    print(", ".join(f"{name} {entry['bytes'] / 1e6:.1f} MB" for name, entry in corpus.manifest["files"].items()))
    for layout in ("padded", "packed"):
        batches = TrainingBatches(Rows(corpus.train, layout, 128, corpus.tokenizer.end_of_text), 32, seed=0)
        median, *_ = spread(timed(batches.__getitem__, step) for step in range(3000))
        print(f"{layout}: {median * 1e3:.3f} ms per batch of 32 x 128 (median of 3,000)")


def kills(arguments: Arguments, stories: list[str], folder: Path) -> None:
    """Each round kills a preparation at a random moment and then finishes it.

    Raises:
        UserError: its end is not that of a preparation that nobody touched.
    """
    source, chance = folder / "stories.txt", random.Random(0)
    _write(source, _repeated(stories, arguments.megabytes))
    whole, killed = (DataConfig(str(source), "compact", cache_dir=str(folder / name)) for name in ("whole", "killed"))
    seconds = timed(prepare, whole)
    print(f"{arguments.megabytes} MB, {seconds:.1f} s uninterrupted", flush=True)
    for number in range(1, arguments.kills + 1):
        process, after = _start(killed), chance.uniform(0, seconds + 1)  # Python needs about a second to start
        with suppress(subprocess.TimeoutExpired):
            process.wait(after)
        process.kill()
        process.wait()
        finished = len(list((folder / "killed").glob("*/shards/*.npz")))
        rest, kill = timed(prepare, killed), f"kill {number} after {after:.1f} s, {finished} shards finished"
        # A manifest holds the checksums of all other files, and `verify` compares them.
        if prepare(killed, verify=True).manifest != prepare(whole, verify=True).manifest:
            raise UserError(f"{kill}: other bytes than without the kill")
        print(f"{kill}; then {rest:.1f} s: the same bytes", flush=True)
        shutil.rmtree(folder / "killed")


PARTS = {"throughput": (throughput, "tokenizers"), "full-size": (full_size, "psutil"), "kills": (kills, "tiktoken")}

_PREPARE = """
import sys
from tinygpt_jax.config import DataConfig
from tinygpt_jax.data.corpus import prepare
prepare(DataConfig(sys.argv[1], sys.argv[2], cache_dir=sys.argv[3]))
"""


def _start(config: DataConfig) -> subprocess.Popen[bytes]:
    """A preparation in a process of its own. If it fails, `prepare` here fails too, and says why."""
    command = [sys.executable, "-c", _PREPARE, config.source, config.vocabulary, str(config.cache_dir)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def _watched(process: subprocess.Popen[bytes]) -> str:
    """Seconds until the end, those of CPU of its processes, and the largest sum of their memory."""
    import psutil

    before, start, peak = os.times(), time.perf_counter(), 0
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            peak = max(peak, sum(p.memory_info().rss for p in (parent, *parent.children(recursive=True))))
        time.sleep(0.1)
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return f"{seconds:.0f} s ({cpu:.0f} s of CPU), {peak / 1e6:.0f} MB in all processes"


def _datasets_map(texts: list[str], folder: Path) -> Callable[[], Any]:
    """What nanoGPT's data preparation does: a story at a time, on all cores."""
    import datasets

    datasets.disable_progress_bars()
    encoding = tokenizer._gpt2_encoding()

    def process(example: dict[str, Any]) -> dict[str, Any]:
        ids = encoding.encode_ordinary(example["text"])
        return {"ids": [*ids, tokenizer.GPT2_END_OF_TEXT], "len": len(ids) + 1}

    return partial(
        datasets.Dataset.from_dict({"text": texts}).map,
        process,
        remove_columns=["text"],
        num_proc=default_workers(),
        load_from_cache_file=False,
        cache_file_name=str(folder / "mapped.arrow"),
    )


def _tokenizers_batch(texts: list[str]) -> Callable[[], Any]:
    """The Rust library on all cores, a thousand stories at a time."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    pairs = [line.split(" ") for line in tokenizer._read_merges().split("\n")[1:-1]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())  # GPT-2's order: printable bytes, then the others
    vocabulary = {token: i for i, token in enumerate([*letters, *map("".join, pairs)])}
    fast = Tokenizer(models.BPE(vocabulary, [(left, right) for left, right in pairs]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    ids, _ = tokenizer.gpt2().encode_batch(texts[:100])
    assert np.array_equal(np.concatenate([e.ids for e in fast.encode_batch_fast(texts[:100])]), ids)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    starts = range(0, len(texts), 1000)
    return lambda: [np.array(e.ids, np.uint16) for i in starts for e in fast.encode_batch_fast(texts[i : i + 1000])]


def _repeated(stories: list[str], megabytes: int) -> list[str]:
    return stories * -(-megabytes * 10**6 // sum(len(story.encode()) for story in stories))


def _write(path: Path, stories: Iterable[str]) -> int:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{story}\n<|endoftext|>\n" for story in stories)
    return path.stat().st_size


if __name__ == "__main__":
    cli.run(main)
