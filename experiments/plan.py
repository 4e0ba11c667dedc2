"""Will it fit a GPU, and how fast at best? python -m experiments.plan --preset tinystories --gpu h100 --devices 8

Needs no GPU: the program is compiled for one and read. Nothing is run.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from experiments import cli, presets
from experiments.train import with_config
from tinygpt_jax.cards import CARDS_OF_A_MACHINE, card
from tinygpt_jax.config import Config, ModelConfig
from tinygpt_jax.data.hub import TINYSTORIES
from tinygpt_jax.errors import require
from tinygpt_jax.estimate.compiling import NoCompilerError, Request
from tinygpt_jax.estimate.estimation import estimate, first_that_fits, room
from tinygpt_jax.estimate.summary import page, summary
from tinygpt_jax.mesh import mesh_axes

# Of the hub's training split, whose stories are not fetched to plan a run; tokens are GPT-2's.
_HUB_STORIES, _HUB_TOKENS = 2_119_719, 474_000_000
_MOST_DEVICES = 512


@dataclass(frozen=True)
class Start:
    """The flags that are no settings of a run."""

    preset: str = "tinystories"  # quickstart, laptop, tinystories or tinystories-modern
    gpu: str = "h100"  # which card: h100, a100-80, l4, t4, rtx4090 and so on; an unknown name lists all
    devices: int = 1  # how many of them; more than 8 are in machines of 8
    mesh: str | None = None  # how they share a run, such as data=8,fsdp=8 (default: all on data)
    what: Literal["train", "generate"] = "train"  # an update, or writing texts
    rows: int = 1  # generate: how many texts at a time
    json: bool = False  # print one JSON object


@dataclass(frozen=True)
class Arguments(Start):
    """What a run takes on GPUs that need not be here: memory, kernels, traffic, and the time at best.

    The program is compiled for the card and estimated, not run. Every setting starts from the preset, as for training.
    """

    config: Config = field(default_factory=Config)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, compile, estimate, and print."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # no GPU that may be here is needed, nor its driver
    arguments = parse(argv)
    trains = arguments.what == "train"
    config, updates, length = workload(arguments.config)
    devices, rows = (arguments.devices, None) if trains else (1, arguments.rows)
    request, limit = Request(arguments.gpu, config.to_json(), devices, rows, arguments.mesh), room(arguments.gpu)
    found, problem, remedy = None, "", None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the process that compiles ends, too
    try:
        if trains:
            problem = _too_large(config, devices, arguments.mesh, limit)
        if not problem:
            found = estimate(request)
        if trains and found and found.most_bytes > limit:
            tell(f"{found.most_bytes / 2**30:,.1f} GiB at most, which does not fit; trying what would")
            remedy = first_that_fits(request, limit, tell)
    except NoCompilerError as error:
        problem = str(error)
    document = {"preset": arguments.preset, "problem": problem, **summary(request, found, remedy)}
    if trains:
        document["run"] = {"updates": updates, "length": length}
    print(json.dumps(document) if arguments.json else "\n".join(page(document)))


def _too_large(config: Config, devices: int, mesh: str | None, limit: float) -> str:
    """What is wrong where weights and their optimizer's means, without the vectors, take more than `limit` bytes alone.

    AdamW keeps two means of a gradient, Muon one.
    """
    model, parts = config.model, mesh_axes(mesh, devices)["fsdp"]
    muons = model.matrix_parameters - model.vocab_size * model.d_model if config.optimizer.matrices == "muon" else 0
    state = 12 * model.matrix_parameters - 4 * muons
    if state / parts <= limit:
        return ""
    larger = next((n for n in range(parts + 1, devices + 1) if devices % n == 0 and state / n <= limit), None)
    advice = f"cut it with --mesh fsdp={larger}" if larger else "take fewer --n-layers, or less --d-model"
    on_each = " on each device" if devices > 1 else ""
    return f"its state alone, {state / parts / 2**30:,.1f} GiB{on_each}, does not fit: {advice}"


def tell(line: str) -> None:
    """How far it is, for who waits."""
    print(line, file=sys.stderr, flush=True)


def parse(argv: Sequence[str] | None = None) -> Arguments:
    """What the flags ask for.

    Raises:
        UsageError: a flag, the preset or the card is unknown, or a number makes no sense.
    """
    argv = sys.argv[1:] if argv is None else argv
    start = cli.parse(Start, argv, others=True)
    card(start.gpu)
    count, machine = start.devices, CARDS_OF_A_MACHINE
    advice = f"must be 1 to {machine}, the cards of one machine, or a multiple of {machine} up to {_MOST_DEVICES}"
    require(1 <= count <= _MOST_DEVICES and (count <= machine or count % machine == 0), "devices", count, advice)
    mesh_axes(start.mesh, start.devices)
    require(1 <= start.rows <= 2**16, "rows", start.rows, "must be at least 1 and at most 65536")
    alone = start.what == "train" or start.devices == 1
    require(alone, "devices", start.devices, "writing texts takes one device; leave --devices out")
    arguments = with_config(Arguments, argv, start, presets.get(start.preset).config)
    began = arguments.config.origin.init_from
    require(began is None, "init_from", began, "changes nothing of an update; leave it out, and give the model's flags")
    training = arguments.config.training
    pieces = training.gradient_accumulation * start.devices
    advice = f"must be a multiple of gradient_accumulation {training.gradient_accumulation} x {start.devices} devices"
    require(training.batch_size % pieces == 0 or start.what == "generate", "batch_size", training.batch_size, advice)
    return arguments


def workload(config: Config) -> tuple[Config, int, str]:
    """The configuration with as many tokens as the model will know, its number of updates, and that in words.

    Stories that are here are prepared as for training. Of the hub's, which are not fetched to plan a run, the numbers
    are known; their compact vocabulary is not, and as much as it may be at most is taken.
    """
    data, training = config.data, config.training
    if data.source == "tinystories":
        most = ModelConfig.vocab_size if data.max_vocab is None else data.max_vocab + 257  # with all bytes, end of text
        vocab_size, stories = min(most, ModelConfig.vocab_size), f"{_HUB_STORIES:,} stories of {TINYSTORIES}"
        length = config.model.context_length
        rows = _HUB_STORIES if data.layout == "padded" else -(-_HUB_TOKENS // length)
    else:
        from tinygpt_jax.data.batches import Rows
        from tinygpt_jax.data.corpus import prepare

        corpus = prepare(data)
        vocab_size, stories = corpus.tokenizer.vocab_size, f"{corpus.train.n_stories:,} stories"
        length, end_of_text = config.model.context_length, corpus.tokenizer.end_of_text
        rows = len(Rows(corpus.train, data.layout, length, end_of_text))
    config = replace(config, model=replace(config.model, vocab_size=vocab_size))
    per_epoch = rows / training.batch_size
    updates = training.steps or max(1, round(training.epochs * per_epoch))
    return config, updates, f"{updates:,} updates, {updates / per_epoch:,.3g} epochs of {stories}"


if __name__ == "__main__":
    cli.run(main)
