"""Every setting: of a run five frozen dataclasses with a JSON form, and of writing `Sampling`; and their validation.

The defaults are the reference system. This is the only place where a default is written down: `experiments`
turns the fields into flags, and `config.json` in a run folder is `Config.to_json()`.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from tinygpt_jax.errors import UsageError, require
from tinygpt_jax.settings import Range, Settings

MOST_STEPS = 99_999_999  # what eight digits, the names of checkpoints, can count
Count = Annotated[int, Range(1)]
Share = Annotated[float, Range(1e-6, 0.999999)]
Arithmetic = Literal["auto", "plain", "fused", "kernels"]
# In float32, in which the optimizer computes: below 1, and the smallest and largest number.
BelowOne = Annotated[float, Range(0, 0.9999999)]
Positive = Annotated[float, Range(1.18e-38, 3.4e38)]


@dataclass(frozen=True)
class ModelConfig(Settings):
    """The shape of the network. Everything that changes a parameter's shape or meaning is here."""

    # The ranges are far above what trains on one machine, so that a stranger's configuration cannot ask for more work
    # or memory; that of token ids is 16 bits.
    vocab_size: Annotated[int, Range(1, 2**16)] = 50_257  # number of tokens; a run has those of its tokenizer
    context_length: Annotated[int, Range(1, 2**20)] = 128  # how many tokens the model sees at once
    n_layers: Annotated[int, Range(1, 2**10)] = 12  # transformer blocks
    n_heads: Annotated[int, Range(1, 2**16)] = 12  # attention heads; must divide d_model
    d_model: Annotated[int, Range(1, 2**16)] = 768  # width of the residual stream
    d_ff: Annotated[int, Range(1, 2**18)] = 3072  # width of the feed-forward hidden layer
    dropout: BelowOne = 0.1  # probability of dropping a feature after the embedding and after each sub-layer
    activation: Literal["relu", "gelu"] = "relu"  # feed-forward non-linearity (gelu is GPT-2's tanh form)
    norm: Literal["post", "pre"] = "post"  # LayerNorm after each sub-layer (Vaswani 2017) or before (GPT-2)
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"  # added sinusoids, a table, turned heads
    tie_embeddings: bool = True  # use the token embedding as the output head

    def __post_init__(self) -> None:
        super().__post_init__()
        advice = f"must divide d_model {self.d_model}; try n_heads {_nearest_divisor(self.d_model, self.n_heads)}"
        require(self.d_model % self.n_heads == 0, "n_heads", self.n_heads, advice)
        if self.positions == "sinusoidal":
            require(self.d_model % 2 == 0, "d_model", self.d_model, "must be even for sinusoidal positions")
        if self.positions == "rotary":
            advice = f"{self.head_dim} of {self.d_model} features in a head: rotary positions need an even number"
            require(self.head_dim % 2 == 0, "n_heads", self.n_heads, advice)

    @property
    def head_dim(self) -> int:
        """Features per attention head."""
        return self.d_model // self.n_heads

    @property
    def matrix_parameters(self) -> int:
        """Parameters in products with a matrix: all but biases, LayerNorms, and tables that are only read."""
        per_layer = 4 * self.d_model**2 + 2 * self.d_model * self.d_ff
        return self.n_layers * per_layer + self.vocab_size * self.d_model

    @property
    def flops_per_token(self) -> int:
        """Arithmetic of a training step for a token: 6 per matrix parameter; attention's scores and mixing, 12 L d T.

        Source: Chowdhery et al. 2022 (PaLM), appendix B. Reading the embedding is no arithmetic; the head is.
        """
        return 6 * self.matrix_parameters + 12 * self.n_layers * self.d_model * self.context_length


@dataclass(frozen=True)
class DataConfig(Settings):
    """Which stories, in which vocabulary, and how they become rows of tokens."""

    source: str = "tinystories"  # (or --data) builtin, tinystories, or a file or folder of .txt, .jsonl, .csv, .parquet
    vocabulary: Literal["gpt2", "compact"] = "gpt2"  # all of GPT-2's tokens, or those that occur plus bytes
    max_vocab: Count | None = None  # compact: keep only this many of the most frequent tokens (plus bytes)
    layout: Literal["padded", "packed"] = "padded"  # one story per row, or stories joined without a gap
    recut: bool = False  # packed: cut the stories into rows elsewhere in each epoch
    validation_fraction: Share = 0.1  # share of stories held out, unless a split or files named valid or test say which
    builtin_stories: Annotated[int, Range(2)] = 60_000  # how many stories the built-in storyteller writes
    drop_duplicates: bool = False  # keep only the first of identical stories
    fix_encoding: bool = False  # repair mis-decoded text such as â€œ
    skip_bad: bool = False  # skip and count malformed records instead of stopping at the first
    cache_dir: str | None = None  # where prepared corpora are kept (default: the user's cache folder)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.source != "", "source", "''", "must be builtin, tinystories, or a file or folder")
        if self.max_vocab is not None:
            require(self.vocabulary == "compact", "max_vocab", self.max_vocab, "needs --vocabulary compact")
        if self.recut:
            advice = "needs --layout packed, for other rows are not cut from the middle of stories: or give --no-recut"
            require(self.layout == "packed", "recut", self.recut, advice)


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """AdamW (Loshchilov & Hutter 2019) with clipping and a schedule."""

    learning_rate: Positive = 1e-4  # the highest rate of the schedule
    schedule: Literal["constant", "cosine"] = "constant"  # after the warmup
    warmup_steps: Annotated[int, Range(0, MOST_STEPS)] = 0  # linear from 0 to learning_rate
    final_fraction: Annotated[float, Range(0, 1)] = 0.1  # cosine ends at this share of learning_rate
    beta1: BelowOne = 0.9  # decay of the mean of gradients
    beta2: BelowOne = 0.999  # decay of the mean of squared gradients
    epsilon: Positive = 1e-8  # keeps the division finite
    weight_decay: Annotated[float, Range(0)] = 0.01  # on matrices only, not on biases and LayerNorm
    clip_norm: Positive = 1.0  # global norm that gradients are scaled down to
    matrices: Literal["adamw", "muon"] = "adamw"  # muon: the matrices of the blocks by Muon, the rest by AdamW
    muon_rate: Positive = 3.0  # muon: the matrices' rate, as a multiple of learning_rate
    muon_momentum: BelowOne = 0.95  # muon: decay of the mean of the matrices' gradients

    def __post_init__(self) -> None:
        super().__post_init__()
        rate, decay = self.learning_rate, self.weight_decay
        advice = "must be at most 1, or an update would take more than all of a weight away; give less --learning-rate"
        require(rate * decay <= 1, "learning_rate", f"{rate} x weight_decay {decay}", f"{advice}, or --weight-decay")


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How long, how often, and on what."""

    epochs: Annotated[float, Range(1e-6, MOST_STEPS)] = 5.0  # passes over the training stories, when steps is not given
    steps: Annotated[int, Range(1, MOST_STEPS)] | None = None  # number of updates, in place of epochs
    batch_size: Count = 32  # rows per update, over all devices and micro-batches
    gradient_accumulation: Count = 1  # split each batch into this many pieces to save memory
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0  # initial weights, order of stories, dropout and samples
    eval_every: Count = 1000  # steps between evaluations (each also saves a checkpoint)
    save_every: Count | None = None  # steps between further checkpoints, without an evaluation
    checkpoints: Literal["newest", "all"] = "newest"  # all: besides the newest, a dozen spread over the whole run
    eval_batches: Count = 50  # fixed validation batches per evaluation
    log_every: Count = 20  # steps between lines of metrics.jsonl
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators that have it
    arithmetic: Arithmetic = "auto"  # plain: the textbook's formulas; auto: the fastest (on a GPU hand-written kernels)
    remat: bool = False  # recompute activations in the backward pass: less memory, about a third more work
    tensorboard: bool = False  # also write TensorBoard events (needs the extra `tensorboard`)

    def __post_init__(self) -> None:
        super().__post_init__()
        pieces, rows = self.gradient_accumulation, self.batch_size
        require(rows % pieces == 0, "gradient_accumulation", pieces, f"must divide batch_size {rows}")


@dataclass(frozen=True)
class OriginConfig(Settings):
    """The trained model that a run goes on from. Without one it starts from random parameters."""

    init_from: str | None = None  # go on from the parameters of this run or exported model, and keep its vocabulary
    sha256: str | None = None  # of those parameters; a run finds it out

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.init_from != "", "init_from", "''", "must be the folder of a run, or of an exported model")


# What may differ between a checkpoint and the run that continues it: it changes no update's result. (A longer run
# with a cosine schedule does get other rates from then on; that is what its user asks for. A moved source is fine
# as long as its stories are the same, which the corpus fingerprint tells, and the size of the vocabulary is theirs. The
# checksum of the parameters that it began with is in the checkpoint alone.)
_FREE = "epochs steps eval_every save_every checkpoints eval_batches log_every tensorboard arithmetic remat"
FREE_TO_CHANGE = frozenset([*_FREE.split(), "source", "cache_dir", "vocab_size", "sha256"])


@dataclass(frozen=True)
class Config:
    """A whole run. The default is the reference system."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    origin: OriginConfig = field(default_factory=OriginConfig)

    def to_json(self) -> str:
        """The configuration as an indented JSON object of five objects."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Read `to_json`'s form; a missing field keeps its default.

        Raises:
            UsageError: the text is not JSON, or a field is unknown or has a wrong type or value.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:  # ValueError: also of a number of thousands of digits
            raise UsageError(f"the configuration is not JSON: {error}") from None
        groups: dict[str, Any] = {item.name: item.type for item in dataclasses.fields(cls)}
        _check_names(document, groups, "the configuration")
        for name, group in groups.items():
            _check_names(document.setdefault(name, {}), [item.name for item in dataclasses.fields(group)], name)
        return cls(**{name: group(**document[name]) for name, group in groups.items()})

    def differences(self, other: "Config", ignore: frozenset[str] = frozenset()) -> list[str]:
        """Lines like `model.d_model: 128 here, 256 there` for every field that differs and is not ignored."""
        theirs = dataclasses.asdict(other)
        return [
            f"{group}.{name}: {value} here, {theirs[group][name]} there"
            for group, mine in dataclasses.asdict(self).items()
            for name, value in mine.items()
            if value != theirs[group][name] and name not in ignore
        ]


@dataclass(frozen=True)
class Sampling(Settings):
    """How the next token is chosen. The settings act in the order repetition penalty, temperature, top-k, top-p."""

    # The ranges are far outside of use; within them float32 can work with the logits.
    temperature: Annotated[float, Range(0, 1000)] = 0.8  # divides the logits; 0 always takes the likeliest token
    top_k: Annotated[int, Range(0, 2**31 - 1)] = 0  # choose among this many likeliest tokens (0: among all)
    top_p: Annotated[float, Range(1e-6, 1)] = 1.0  # choose among the fewest tokens that hold this much probability
    repetition_penalty: Annotated[float, Range(0.001, 1000)] = 1.0  # above 1, tokens of the text become less likely


def _check_names(values: Any, known: Any, where: str) -> None:
    if not isinstance(values, dict):
        raise UsageError(f"{where} must be a JSON object, not {type(values).__name__}")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(f"unknown field {unknown[0]!r} in {where}; known: {', '.join(known)}")


def _nearest_divisor(number: int, near: int) -> int:
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - near))
