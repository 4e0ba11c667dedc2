"""The benchmark runs, its contestants do the same work, and its tables say what was measured."""

import importlib.util
import json
import math
import os
import re
import sys
from dataclasses import replace
from importlib import import_module
from multiprocessing import active_children

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.measuring import benchmark, data_benchmark
from experiments.measuring.peers import OURS, TRAINERS, WRITERS
from experiments.measuring.peers.turns import in_a_process, peak_memory, random_batch
from experiments.measuring.tables import print_table, spread
from tinygpt_jax.config import Config, ModelConfig, OptimizerConfig, TrainingConfig
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.model import GPT, abstract_params

TINY = ModelConfig(vocab_size=512, context_length=16, n_layers=2, n_heads=2, d_model=32, d_ff=64)
CONFIG = Config(
    model=TINY,
    optimizer=OptimizerConfig(learning_rate=1e-3),
    training=TrainingConfig(batch_size=8, compute_dtype="float32"),
)


def contestants(all_of_them):
    """Those that start in seconds; skipped where their library is not installed."""
    return [
        pytest.param(
            contestant,
            id=contestant.name,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(contestant.library) is None,
                reason=f"{contestant.library} comes with the extra `bench`",
            ),
        )
        for contestant in all_of_them
        if "compiled" not in contestant.options
    ]


def part(contestant, name):
    return getattr(import_module(f"experiments.measuring.peers.{contestant.file}"), name)


@pytest.mark.parametrize("contestant", contestants(TRAINERS))
def test_trainers_do_the_same_work(contestant):
    """As many parameters, a first loss that is nearly that of guessing, and a loss that falls as fast."""
    trainer = part(contestant, "Trainer")(CONFIG)
    assert trainer.n_parameters == sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(TINY)))
    batch = random_batch(CONFIG, seed=0)
    losses = [float(trainer.update(*batch)) for _ in range(12)]
    assert losses[0] == pytest.approx(math.log(TINY.vocab_size), abs=0.1)
    assert losses[0] - losses[-1] == pytest.approx(0.49, abs=0.1)


@pytest.mark.parametrize("contestant", contestants(WRITERS))
def test_writers_write_what_their_model_finds_likeliest(contestant):
    """As many tokens as were asked for, the same again, and not the same whatever the prompt."""
    writer = part(contestant, "Writer")(CONFIG)
    prompts = np.random.default_rng(0).integers(0, TINY.vocab_size, (contestant.most_rows, 4), np.int32)[:3]
    written = writer.write(prompts, 5)
    assert written.shape == (len(prompts), 5)
    assert written.min() >= 0 and written.max() < TINY.vocab_size
    np.testing.assert_array_equal(written, writer.write(prompts, 5))
    np.testing.assert_array_equal(written[:, :2], writer.write(prompts, 2))
    np.testing.assert_array_equal(written[:, 1:3], writer.write(np.c_[prompts, written[:, :1]], 2))


def test_the_tutorial_way_and_ours_are_one_model():
    """Flax's own layers with our parameters in them: the same logits, so both are timed on the same arithmetic."""
    tutorial = import_module("experiments.measuring.peers.flax_layers").Transformer(TINY)
    tokens = jnp.arange(12).reshape(2, 6)
    ours = GPT(TINY).init(jax.random.key(0), tokens)["params"]
    ours = jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), ours)
    theirs = {"Embed_0": {"embedding": ours["token_embedding"]}}
    heads = (TINY.n_heads, TINY.head_dim)
    for i in range(TINY.n_layers):
        block = ours[f"blocks_{i}"]
        attention, feed_forward = block["attention"], block["feed_forward"]
        weights, biases = np.split(attention["qkv_weight"], 3, axis=1), np.split(attention["qkv_bias"], 3)
        theirs[f"MultiHeadDotProductAttention_{i}"] = {
            name: {"kernel": weight.reshape(TINY.d_model, *heads), "bias": bias.reshape(heads)}
            for name, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True)
        } | {
            "out": {
                "kernel": attention["out_weight"].reshape(*heads, TINY.d_model),
                "bias": attention["out_bias"],
            }
        }
        for j, half in enumerate(("out", "in")):  # the outer one is made first
            theirs[f"Dense_{2 * i + j}"] = {
                "kernel": feed_forward[f"weight_{half}"],
                "bias": feed_forward[f"bias_{half}"],
            }
        for j, norm in enumerate(("attention_norm", "feed_forward_norm")):
            theirs[f"LayerNorm_{2 * i + j}"] = block[norm]
    logits = tutorial.apply({"params": theirs}, tokens, train=False)
    np.testing.assert_allclose(logits, GPT(TINY).apply({"params": ours}, tokens), rtol=1e-4, atol=1e-4)


@pytest.fixture
def measurement(tmp_path):
    """Of 2 rows, so that no micro-batches are compiled for `memory`."""
    arguments = benchmark.Arguments(repeats=2, batch_size=2, rows=(2,), peers=False)
    return benchmark.Measurement(replace(TINY, context_length=128, n_layers=1), arguments, tmp_path)


def test_training(measurement):
    row = measurement.training()[OURS.name]
    middle, low, high = row["ms/update"]
    assert low <= middle <= high
    assert row["tokens/s"] == pytest.approx(2 * 128 / middle * 1000)
    assert 0 < row["share of peak"] < 1 and row["peak GiB"] > 0.05
    assert row["ours is faster by"] == (1, 1, 1)


def test_decoding(measurement):
    table = measurement.decoding()
    assert list(table) == [f"{task}, 2 side by side: tinygpt_jax" for task in benchmark.WRITING]
    assert all(row["tokens/s"][1] > 0 for row in table.values())


def test_memory(measurement):
    table = measurement.memory()
    assert list(table) == ["plain", "remat"]
    assert table["plain"]["state, GiB"] == table["remat"]["state, GiB"]
    assert table["plain"]["at most, GiB"] > table["remat"]["at most, GiB"] > table["remat"]["state, GiB"]


def test_startup(measurement):
    """That the second start finds what the first compiled is tested in test_devices.py; here nothing rests on time."""
    times = measurement.startup()[OURS.name]
    assert list(times) == ["cold, s", "warm, s"] and min(times.values()) > 0.1


def test_json(capsys):
    benchmark.main("--sizes quickstart --what input --repeats 1 --json".split())
    report = json.loads(capsys.readouterr().out)
    assert report["device"].startswith("CPU")
    assert list(report["sizes"]["quickstart"]["input"]) == ["padded", "packed"]


def test_a_contestant_that_fails_or_is_killed_is_told_in_a_line():
    with (
        in_a_process({}, "nobody", None, CONFIG) as ask,
        pytest.raises(UserError, match=r"^nobody failed: Module\w+: No"),
    ):
        ask(peak_memory)
    with in_a_process({"ONLY_THERE": "1"}, "turns", None, CONFIG) as ask:
        assert "ONLY_THERE" not in os.environ
        assert ask(peak_memory) > 0
        for process in active_children():
            process.kill()
        with pytest.raises(UserError, match=r"^turns: something ended its process"):
            ask(peak_memory)


@pytest.mark.parametrize("flags", ["--repeats 0", "--batch-size 0", "--rows 1 0", "--sizes", "--what", "--rows"])
def test_nothing_to_measure_is_refused(flags):
    flag, *_, value = flags.split() + (["without a value"] if " " not in flags else [])
    with pytest.raises(UsageError, match=f"^{flag} {value}: "):
        benchmark.main(flags.split())


STORIES = "<|endoftext|>".join(f"Lily has {number} red balls. " * 20 for number in range(200)).encode()


@pytest.mark.parametrize(
    ("content", "flags", "says"),
    [
        (None, "", "stories.txt: No such file or directory"),
        (b"", "", "stories.txt: holds no story"),
        (b"caf\xe9", "", "stories.txt is damaged: not UTF-8"),
        ("a folder", "", "stories.txt is not a file"),
        (STORIES, "--megabytes 0", "--megabytes 0: must be at least 1"),
        (STORIES, "--rounds 0", "--rounds 0: must be at least 1"),
        (STORIES, "--kills -1", "--kills -1: must be at least 1"),
        (STORIES, "--part throughput", "--part throughput needs tokenizers: pip install tokenizers"),
        (STORIES, "--part full-size", "--part full-size needs psutil: pip install psutil"),
    ],
)
def test_bad_input_of_the_data_benchmark_is_told_in_a_line(tmp_path, monkeypatch, content, flags, says):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    monkeypatch.setitem(sys.modules, "psutil", None)
    stories = tmp_path / "stories.txt"
    if content == "a folder":
        stories.mkdir()
    elif content is not None:
        stories.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(says)):
        data_benchmark.main(["--part", "kills", "--stories", str(stories), *flags.split()])


def test_a_killed_preparation_ends_with_the_same_bytes(tmp_path, capsys):
    (tmp_path / "stories.txt").write_bytes(STORIES)
    data_benchmark.main(["--stories", str(tmp_path / "stories.txt"), *"--part kills --megabytes 1 --kills 1".split()])
    assert capsys.readouterr().out.endswith(": the same bytes\n")


def test_a_table_shows_medians_with_their_range(capsys):
    print_table("title", {"one": {"ms": spread([1, 30, 2]), "rate": 1234.5}, "two": {"ms": 0.12345, "rate": 7.0}})
    assert capsys.readouterr().out.splitlines() == [
        "",
        "title",
        "           ms   rate",
        "one  2 (1-30)  1,234",
        "two     0.123      7",
    ]
