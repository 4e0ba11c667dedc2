"""The benchmark runs, its contestants do the same work, and its tables say what was measured."""

import importlib.util
import json
import math
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.measuring import benchmark
from experiments.measuring.peers import OURS, TRAINERS, WRITERS
from experiments.measuring.peers.turns import random_batch
from experiments.measuring.tables import print_table, spread
from tinygpt_jax.config import Config, ModelConfig, OptimizerConfig, TrainingConfig
from tinygpt_jax.errors import UsageError
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
    assert trainer.n_parameters() == sum(math.prod(x.shape) for x in jax.tree.leaves(abstract_params(TINY)))
    batch = random_batch(CONFIG, seed=0)
    losses = [trainer.train([batch]) for _ in range(12)]
    assert losses[0] == pytest.approx(math.log(TINY.vocab_size), abs=0.1)
    assert losses[0] - losses[-1] == pytest.approx(0.49, abs=0.1)


@pytest.mark.parametrize("contestant", contestants(WRITERS))
def test_writers_write_what_their_model_finds_likeliest(contestant):
    """As many tokens as were asked for, the same again, and not the same whatever the prompt."""
    writer = part(contestant, "Writer")(TINY)
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
def small_sizes(monkeypatch):
    monkeypatch.setattr(benchmark, "SIZES", {"quickstart": TINY})
    monkeypatch.setattr(benchmark, "WRITING", {"prompt": (4, 1, 4), "written": (4, 8, 8)})


def test_json_has_every_measurement(small_sizes, capsys, monkeypatch):
    two = ("plain", "gradient accumulation of 4")  # each is a process and a compilation
    monkeypatch.setattr(benchmark, "SAVINGS", {name: benchmark.SAVINGS[name] for name in two})
    flags = "--sizes quickstart --what training decoding memory input --rows 2 --repeats 2 --batch-size 4"
    benchmark.main([*flags.split(), "--no-peers", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["device"].startswith("CPU")
    tables = report["sizes"]["quickstart"]
    training = tables["training"][OURS.name]
    middle, low, high = training["ms/update"]
    assert low <= middle <= high
    assert training["tokens/s"] == pytest.approx(4 * 16 / middle * 1000)
    assert 0 < training["share of peak"] < 1 and training["peak GiB"] > 0.05
    assert training["ours is faster by"] == [1, 1, 1]
    assert list(tables["decoding"]) == [f"{task}, 2 side by side: tinygpt_jax" for task in benchmark.WRITING]
    assert list(tables["input"]) == ["padded", "packed"]
    memory = tables["memory"]
    assert list(memory) == list(benchmark.SAVINGS)
    assert memory["gradient accumulation of 4"]["at most, GiB"] < memory["plain"]["at most, GiB"]
    assert all(row["state, GiB"] < row["at most, GiB"] for row in memory.values())


def test_startup_has_two_times(small_sizes, capsys):
    """That the second start finds what the first compiled is tested in test_devices.py; here nothing rests on time."""
    benchmark.main("--sizes quickstart --what startup --no-peers --json".split())
    times = json.loads(capsys.readouterr().out)["sizes"]["quickstart"]["startup"][OURS.name]
    assert list(times) == ["cold, s", "warm, s"] and min(times.values()) > 0.1


@pytest.mark.parametrize("flag", ["--repeats", "--batch-size", "--rows"])
def test_nothing_to_measure_is_refused(flag):
    with pytest.raises(UsageError, match=f"{flag[2:].replace('-', '_')} 0: must be at least 1"):
        benchmark.main([flag, "0"])


def test_a_table_shows_medians_with_their_range(capsys):
    print_table("title", {"one": {"ms": spread([1, 30, 2]), "rate": 1234.5}, "two": {"ms": 0.12345, "rate": 7.0}})
    assert capsys.readouterr().out.splitlines() == [
        "",
        "title",
        "           ms   rate",
        "one  2 (1-30)  1,234",
        "two     0.123      7",
    ]
