"""Measure the data rooms: python -m experiments.measuring.data_benchmark --part throughput --stories FILE

throughput   text tokenised per second, beside `datasets.map` with tiktoken and beside Hugging Face `tokenizers`
             (pip install tokenizers), in turns in one run
full-size    2.7 million stories: time and memory to prepare, to open, and per batch
kills        SIGKILL at random moments of a preparation, again and again: is the result the same to the byte?
"""

import contextlib
import gzip
import hashlib
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments import cli
from tinygpt_jax import tokenizer
from tinygpt_jax.config import DataConfig
from tinygpt_jax.data.batches import Rows, TrainingBatches
from tinygpt_jax.data.corpus import default_workers, prepare
from tinygpt_jax.data.integrity import CHECKED


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
    stories = arguments.stories.read_text(encoding="utf-8").split("<|endoftext|>")
    stories = [story.strip() for story in stories if story.strip()]
    measure = {"throughput": throughput, "full-size": full_size, "kills": kills}[arguments.part]
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, stories, Path(folder))


def throughput(arguments: Arguments, stories: list[str], folder: Path) -> None:
    """Ours is timed from the file to the finished corpus; the others from texts in memory to token ids."""
    source, texts = folder / "stories.txt", []
    size = sum(len(story.encode()) for story in stories)
    texts = stories * -(-arguments.megabytes * 10**6 // size)
    source.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    megabytes = source.stat().st_size / 1e6
    contestants: dict[str, Callable[[], Any]] = {
        "tinygpt_jax, file to corpus": lambda: prepare(
            DataConfig(str(source), cache_dir=str(folder / "cache")), rebuild=True
        ),
        "datasets.map, encode_ordinary": _datasets_map(texts, folder),
        "tokenizers, encode_batch_fast": _tokenizers_batch(texts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(arguments.rounds):
        for name, work in contestants.items():
            seconds[name].append(_timed(work)[0])
    cores = default_workers()
    for name, times in seconds.items():
        rate = megabytes / statistics.median(times)
        print(f"{name:<32} {rate:6.1f} MB/s, {rate / cores:6.1f} per core of {cores}; rounds {_rounded(times)} s")


def full_size(arguments: Arguments, stories: list[str], folder: Path) -> None:
    """Stories mixed from the first half of one and the second half of another."""
    source = folder / "stories.txt"
    choose = random.Random(0)
    with source.open("w", encoding="utf-8") as file:
        for _ in range(arguments.count):
            first, second = choose.choice(stories), choose.choice(stories)
            file.write(f"{first[: len(first) // 2]}{second[len(second) // 2 :]}\n<|endoftext|>\n")
    print(f"{arguments.count:,} stories, {source.stat().st_size / 1e9:.2f} GB of text, {default_workers()} workers")
    config = DataConfig(str(source), arguments.vocabulary, cache_dir=str(folder / "cache"))
    flags = [config.source, config.vocabulary, str(config.cache_dir)]
    seconds, cpu, peak = _watched([sys.executable, "-c", _PREPARE, *flags])
    print(f"prepared in {seconds:.0f} s ({cpu:.0f} s of CPU), {peak / 1e6:.0f} MB in all processes")
    for when in ("at first", "again"):
        opened = subprocess.run([sys.executable, "-c", _OPEN, *flags], check=True, capture_output=True, text=True)
        print(f"{when}: {opened.stdout.strip()}")
    corpus = prepare(config)
    print(", ".join(f"{name} {entry['bytes'] / 1e6:.1f} MB" for name, entry in corpus.manifest["files"].items()))
    for layout in ("padded", "packed"):
        batches = TrainingBatches(Rows(corpus.train, layout, 128, corpus.tokenizer.end_of_text), 32, seed=0)
        times = [_timed(lambda step=step, batches=batches: batches[step])[0] for step in range(3000)]
        print(f"{layout}: {statistics.median(times) * 1e3:.3f} ms per batch of 32 x 128 (median of 3,000)")


_PREPARE = """
import sys
from tinygpt_jax.config import DataConfig
from tinygpt_jax.data.corpus import prepare
prepare(DataConfig(sys.argv[1], sys.argv[2], cache_dir=sys.argv[3]))
"""

_OPEN = """
import psutil, sys, time
from tinygpt_jax.config import DataConfig
from tinygpt_jax.data.corpus import prepare
start = time.perf_counter()
corpus = prepare(DataConfig(sys.argv[1], sys.argv[2], cache_dir=sys.argv[3]))
seconds, memory = time.perf_counter() - start, psutil.Process().memory_info().rss / 1e6
print(f"{len(corpus.train.tokens):,} tokens opened in {seconds:.3f} s, {memory:.0f} MB with Python and its libraries")
"""


def kills(arguments: Arguments, stories: list[str], folder: Path) -> None:
    """Each round kills a preparation at a random moment and then lets it finish."""
    source = folder / "stories.txt"
    size = sum(len(story.encode()) for story in stories)
    source.write_text("\n<|endoftext|>\n".join(stories * -(-arguments.megabytes * 10**6 // size)), encoding="utf-8")

    def start(cache: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", _PREPARE, str(source), "compact", str(cache)]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL)

    seconds, _ = _timed(lambda: start(folder / "whole").wait())
    expected, moment = _checksums(folder / "whole"), random.Random(0)
    print(f"{arguments.megabytes} MB, {seconds:.1f} s uninterrupted")
    for number in range(1, arguments.kills + 1):
        process, after = start(folder / "killed"), moment.uniform(0, seconds)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(after)
        process.send_signal(signal.SIGKILL)
        process.wait()
        finished = len(list((folder / "killed").glob("*/shards/*.npz")))
        rest, _ = _timed(lambda: start(folder / "killed").wait())
        same = _checksums(folder / "killed") == expected
        print(
            f"kill {number} after {after:.1f} s, {finished} shards finished; then {rest:.1f} s: "
            f"{'the same bytes' if same else 'OTHER BYTES'}"
        )
        shutil.rmtree(folder / "killed")


def _checksums(cache: Path) -> dict[str, str]:
    files = [path for path in cache.rglob("*") if path.is_file() and path.name not in (CHECKED, "lock")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _datasets_map(texts: list[str], folder: Path) -> Callable[[], Any]:
    """What nanoGPT's data preparation does: a story at a time, on all cores."""
    import datasets

    datasets.disable_progress_bars()
    stories = datasets.Dataset.from_dict({"text": texts})
    encoding = tokenizer._gpt2_encoding()

    def process(example: dict[str, Any]) -> dict[str, Any]:
        ids = encoding.encode_ordinary(example["text"])
        return {"ids": [*ids, tokenizer.GPT2_END_OF_TEXT], "len": len(ids) + 1}

    return lambda: stories.map(
        process,
        remove_columns=["text"],
        num_proc=default_workers(),
        load_from_cache_file=False,
        cache_file_name=str(folder / "mapped.arrow"),
    )


def _tokenizers_batch(texts: list[str]) -> Callable[[], Any]:
    """The Rust library on all cores, a thousand stories at a time."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    table = gzip.decompress(tokenizer._MERGES.read_bytes()).decode().split("\n")[1:-1]
    merges = [(left, right) for left, right in (merge.split(" ") for merge in table)]
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = [chr(byte) for byte in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]
    vocabulary = {token: i for i, token in enumerate(letters + ["".join(merge) for merge in merges])}
    fast = Tokenizer(models.BPE(vocabulary, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    ids, _ = tokenizer.gpt2().encode_batch(texts[:100])
    assert np.array_equal(np.concatenate([e.ids for e in fast.encode_batch_fast(texts[:100])]), ids)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"

    def work() -> None:
        for start in range(0, len(texts), 1000):
            for encoded in fast.encode_batch_fast(texts[start : start + 1000]):
                np.array(encoded.ids, np.uint16)

    return work


def _watched(command: list[str]) -> tuple[float, float, int]:
    """Run a command; return its seconds, those of CPU of all its processes, and the largest sum of their memory."""
    import psutil

    before, start, peak = os.times(), time.perf_counter(), 0
    with psutil.Popen(command, stderr=subprocess.DEVNULL) as parent:
        while parent.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes = [parent, *parent.children(recursive=True)]
                peak = max(peak, sum(process.memory_info().rss for process in processes))
            time.sleep(0.1)
    seconds, after = time.perf_counter() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu, peak


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def _rounded(times: list[float]) -> str:
    return ", ".join(f"{seconds:.1f}" for seconds in times)


if __name__ == "__main__":
    cli.run(main)
