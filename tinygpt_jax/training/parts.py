"""What a run is made of, and what is said of it before the first update."""

import dataclasses
import sys

import jax
from jax.sharding import Mesh

from tinygpt_jax.arithmetic import resolve_arithmetic
from tinygpt_jax.config import MOST_STEPS, Config, ModelConfig
from tinygpt_jax.data.batches import EvaluationBatches, Rows, TrainingBatches
from tinygpt_jax.data.corpus import Corpus
from tinygpt_jax.devices import describe_devices, device_memory, resolve_dtype
from tinygpt_jax.errors import UserError, require
from tinygpt_jax.model import GPT
from tinygpt_jax.training.optimizer import learning_rate_schedule, make_optimizer
from tinygpt_jax.training.sharding import rows_here
from tinygpt_jax.training.step import TrainState, make_train_step

_MANY_EPOCHS = 10  # of so many, a model knows its stories by heart
_MUCH_SPELLED = 0.2  # share of tokens; above it a model has to learn to spell


class Parts:
    """The model, its batches and its updates: all of it determined by the configuration, the corpus and the devices.

    Raises UsageError where epochs are too many steps or a batch does not divide, UserError of too few stories.
    """

    def __init__(self, config: Config, corpus: Corpus, mesh: Mesh) -> None:
        # How many tokens there are is the tokenizer's to say.
        model = dataclasses.replace(config.model, vocab_size=corpus.tokenizer.vocab_size)
        self.config, self.corpus, self.mesh = dataclasses.replace(config, model=model), corpus, mesh
        training = config.training
        train, validation = (
            Rows(split, config.data.layout, model.context_length, corpus.tokenizer.end_of_text)
            for split in (corpus.train, corpus.validation)
        )
        self.model = make_model(self.config, mesh)
        share = rows_here(training.batch_size, mesh)
        self.batches = TrainingBatches(train, training.batch_size, training.seed, share, config.data.recut)
        self.validation = EvaluationBatches(validation, training.batch_size, training.eval_batches, share)
        steps = training.steps or training.epochs * self.batches.per_epoch
        require(
            steps <= MOST_STEPS, "epochs", training.epochs, f"must be at most {MOST_STEPS:,} steps, not {steps:,.0f}"
        )
        self.total_steps = max(1, round(steps))
        self.learning_rate = learning_rate_schedule(config.optimizer, self.total_steps)
        self.optimizer = make_optimizer(config.optimizer, self.total_steps)
        self.update = make_train_step(self.model, self.optimizer, training, mesh)


def make_model(config: Config, mesh: Mesh) -> GPT:
    """The network as it is trained on the mesh's devices."""
    training, device = config.training, mesh.devices.flat[0]
    dtype, arithmetic = resolve_dtype(training.compute_dtype, device), resolve_arithmetic(training.arithmetic, device)
    return GPT(config.model, dtype, training.remat, arithmetic)


def check_memory(config: Config, mesh: Mesh) -> None:
    """Raise UserError if a device has no room for its parameters, which are counted before anything is made."""
    tokens = ModelConfig.vocab_size if config.data.vocabulary == "gpt2" else 257  # at least all bytes, end of text
    count = dataclasses.replace(config.model, vocab_size=tokens).matrix_parameters
    needed, available = 16 * count / mesh.shape["fsdp"] / 2**30, device_memory() / 2**30
    if needed > available:
        raise UserError(
            f"this model does not fit: {count:,} parameters need {needed:,.1f} GiB (16 bytes each, with a gradient and "
            f"AdamW's two means), and the device has {available:,.1f} GiB: give fewer --n-layers, or less --d-model"
        )


def announce(parts: Parts, state: TrainState, doing: str) -> None:
    """Say what is about to be done, and warn of what is probably not wanted."""
    config, corpus, steps, per_epoch = parts.config, parts.corpus, parts.total_steps, parts.batches.per_epoch
    epochs = steps / per_epoch
    count = sum(x.size for x in jax.tree.leaves(state.params))
    print(
        f"{doing} {f'{count / 1e6:.1f} M' if count >= 1e6 else f'{count:,}'} parameters "
        f"in {parts.model.compute_dtype} on {describe_devices()}\n"
        f"{corpus.train.n_stories:,} stories to learn from, {corpus.validation.n_stories:,} held out, "
        f"{corpus.tokenizer.vocab_size:,} different tokens\n"
        f"{steps:,} steps of {config.training.batch_size} x {config.model.context_length} tokens, "
        f"{epochs:,.{1 if epochs >= 1 else 2}f} epochs",
        flush=True,
    )
    if config.origin.init_from:
        print(f"from the parameters of {config.origin.init_from}, {str(config.origin.sha256)[:12]}", flush=True)
        if (spelled := corpus.manifest["tokenizer"]["spelled_in_bytes"]) > _MUCH_SPELLED:
            doubt = f"{spelled:.0%} of GPT-2's tokens are spelled in bytes here: they are not in the model's vocabulary"
            print(f"warning: {doubt}", file=sys.stderr)
    warmup, rate = config.optimizer.warmup_steps, config.optimizer.learning_rate
    if warmup > steps:
        doubt = f"warmup_steps {warmup} is more than the {steps:,} steps: learning_rate {rate:g} is never reached"
        print(f"warning: {doubt}", file=sys.stderr)
    if epochs > _MANY_EPOCHS:
        advice = f"give more stories, or --steps {int(_MANY_EPOCHS * per_epoch)} or fewer"
        print(f"warning: each story is seen {epochs:,.0f} times and will be known by heart: {advice}", file=sys.stderr)
