"""Every setting of a run: four frozen dataclasses, their validation, and their JSON form.

The defaults are the reference system. This is the only place where a default is written down: `experiments`
turns the fields into flags, and `config.json` in a run folder is `Config.to_json()`.
"""

import dataclasses
import json
import operator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tinygpt_jax.errors import UsageError, require

MOST_STEPS = 99_999_999  # what eight digits, the names of checkpoints, can count
# In float32, in which the optimizer computes: the smallest and the largest number, and one that is below 1.
_SMALLEST, _LARGEST, _BELOW_ONE = 1.18e-38, 3.4e38, 0.9999999
_BOUNDS = {"at_least": operator.ge, "above": operator.gt, "below": operator.lt, "at_most": operator.le}


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network. Everything that changes a parameter's shape or meaning is here."""

    vocab_size: int = 50_257  # number of tokens; a run has those of its tokenizer
    context_length: int = 128  # how many tokens the model sees at once
    n_layers: int = 12  # transformer blocks
    n_heads: int = 12  # attention heads; must divide d_model
    d_model: int = 768  # width of the residual stream
    d_ff: int = 3072  # width of the feed-forward hidden layer
    dropout: float = 0.1  # probability of dropping a feature after the embedding and after each sub-layer
    activation: Literal["relu", "gelu"] = "relu"  # feed-forward non-linearity (gelu is GPT-2's tanh form)
    norm: Literal["post", "pre"] = "post"  # LayerNorm after each sub-layer (Vaswani 2017) or before (GPT-2)
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"  # fixed sinusoids or a learned table
    tie_embeddings: bool = True  # use the token embedding as the output head

    def __post_init__(self) -> None:
        _check_types(self)
        # Far above what trains on one machine: a stranger's configuration cannot ask for more work or memory.
        _check_range(self, "vocab_size", at_least=1, at_most=2**16)  # token ids are 16 bits wide
        _check_range(self, "context_length", at_least=1, at_most=2**20)
        _check_range(self, "n_layers", at_least=1, at_most=2**10)
        _check_range(self, "n_heads", "d_model", at_least=1, at_most=2**16)
        _check_range(self, "d_ff", at_least=1, at_most=2**18)
        advice = f"must divide d_model {self.d_model}; try n_heads {_nearest_divisor(self.d_model, self.n_heads)}"
        require(self.d_model % self.n_heads == 0, "n_heads", self.n_heads, advice)
        _check_range(self, "dropout", at_least=0, below=1)
        if self.positions == "sinusoidal":
            require(self.d_model % 2 == 0, "d_model", self.d_model, "must be even for sinusoidal positions")

    @property
    def head_dim(self) -> int:
        """Features per attention head."""
        return self.d_model // self.n_heads

    @property
    def matrix_parameters(self) -> int:
        """Parameters in products with a matrix: all but biases, LayerNorms, and tables that are only read."""
        per_layer = 4 * self.d_model**2 + 2 * self.d_model * self.d_ff
        return self.n_layers * per_layer + self.vocab_size * self.d_model


@dataclass(frozen=True)
class DataConfig:
    """Which stories, in which vocabulary, and how they become rows of tokens."""

    source: str = "tinystories"  # (or --data) builtin, tinystories, or a file or folder of .txt, .jsonl, .csv, .parquet
    vocabulary: Literal["gpt2", "compact"] = "gpt2"  # all of GPT-2's tokens, or those that occur plus bytes
    max_vocab: int | None = None  # compact: keep only this many of the most frequent tokens (plus bytes)
    layout: Literal["padded", "packed"] = "padded"  # one story per row, or stories joined without a gap
    validation_fraction: float = 0.1  # share of stories held out, unless a split or files named valid or test say which
    builtin_stories: int = 60_000  # how many stories the built-in storyteller writes
    drop_duplicates: bool = False  # keep only the first of identical stories
    fix_encoding: bool = False  # repair mis-decoded text such as â€œ
    skip_bad: bool = False  # skip and count malformed records instead of stopping at the first
    cache_dir: str | None = None  # where prepared corpora are kept (default: the user's cache folder)

    def __post_init__(self) -> None:
        _check_types(self)
        require(self.source != "", "source", "''", "must be builtin, tinystories, or a file or folder")
        _check_range(self, "validation_fraction", above=0, below=1)
        _check_range(self, "builtin_stories", at_least=2)
        _check_range(self, "max_vocab", at_least=1)
        if self.max_vocab is not None:
            require(self.vocabulary == "compact", "max_vocab", self.max_vocab, "needs --vocabulary compact")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019) with clipping and a schedule."""

    learning_rate: float = 1e-4  # the highest rate of the schedule
    schedule: Literal["constant", "cosine"] = "constant"  # after the warmup
    warmup_steps: int = 0  # linear from 0 to learning_rate
    final_fraction: float = 0.1  # cosine ends at this share of learning_rate
    beta1: float = 0.9  # decay of the mean of gradients
    beta2: float = 0.999  # decay of the mean of squared gradients
    epsilon: float = 1e-8  # keeps the division finite
    weight_decay: float = 0.01  # on matrices only, not on biases and LayerNorm
    clip_norm: float = 1.0  # global norm that gradients are scaled down to

    def __post_init__(self) -> None:
        _check_types(self)
        for name in ("learning_rate", "epsilon", "clip_norm"):
            why = f", as float32 holds no others; the default is {getattr(OptimizerConfig, name)}"
            _check_range(self, name, at_least=_SMALLEST, at_most=_LARGEST, why=why)
        _check_range(self, "beta1", "beta2", at_least=0, at_most=_BELOW_ONE)
        _check_range(self, "final_fraction", at_least=0, at_most=1)
        _check_range(self, "warmup_steps", at_least=0, at_most=MOST_STEPS)
        why = ", or an update would take more than all of a weight away: learning_rate x weight_decay of it"
        _check_range(self, "weight_decay", at_least=0, at_most=1 / self.learning_rate, why=why)


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how often, and on what."""

    epochs: float = 5.0  # passes over the training stories, when steps is not given
    steps: int | None = None  # number of updates; overrides epochs
    batch_size: int = 32  # rows per update, over all devices and micro-batches
    gradient_accumulation: int = 1  # split each batch into this many pieces to save memory
    seed: int = 0  # initial weights, order of stories, dropout and samples
    eval_every: int = 1000  # steps between evaluations (each also saves a checkpoint)
    save_every: int | None = None  # steps between further checkpoints, without an evaluation
    eval_batches: int = 50  # fixed validation batches per evaluation
    log_every: int = 20  # steps between lines of metrics.jsonl
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators that have it
    remat: bool = False  # recompute activations in the backward pass: less memory, about a third more work
    tensorboard: bool = False  # also write TensorBoard events (needs the extra `tensorboard`)

    def __post_init__(self) -> None:
        _check_types(self)
        _check_range(self, "epochs", above=0, at_most=MOST_STEPS)
        _check_range(self, "steps", at_least=1, at_most=MOST_STEPS)
        counts = "batch_size gradient_accumulation eval_every save_every eval_batches log_every".split()
        _check_range(self, *counts, at_least=1)
        _check_range(self, "seed", at_least=0, below=2**31)
        pieces, rows = self.gradient_accumulation, self.batch_size
        require(rows % pieces == 0, "gradient_accumulation", pieces, f"must divide batch_size {rows}")


# What may differ between a checkpoint and the run that continues it: it changes no update's result. (A longer run
# with a cosine schedule does get other rates from then on; that is what its user asks for. A moved source is fine
# as long as its stories are the same, which the corpus fingerprint tells.)
FREE_TO_CHANGE = frozenset(
    "epochs steps eval_every save_every eval_batches log_every tensorboard source cache_dir remat".split()
)


@dataclass(frozen=True)
class Config:
    """A whole run. The default is the reference system."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def to_json(self) -> str:
        """The configuration as an indented JSON object of four objects."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Config":
        """Read `to_json`'s form; a missing field keeps its default.

        Raises:
            UsageError: the text is not JSON, or a field is unknown or has a wrong type or value.
        """
        try:
            document = json.loads(text)
        except (ValueError, RecursionError) as error:
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


def _check_names(values: Any, known: Any, where: str) -> None:
    if not isinstance(values, dict):
        raise UsageError(f"{where} must be a JSON object, not {type(values).__name__}")
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise UsageError(f"unknown field {unknown[0]!r} in {where}; known: {', '.join(known)}")


def _check_types(config: Any) -> None:
    """Refuse a value of a wrong type, which JSON or a caller may bring."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            options = get_args(hint)
            require(value in options, name, repr(value), f"must be one of {', '.join(options)}")
            continue
        allowed = get_args(hint) or (hint,)
        # JSON has one kind of number: a whole number is a fine value for a float field. A bool is not a number.
        fits = any(type(value) is kind or (kind is float and type(value) is int) for kind in allowed)
        require(fits, name, repr(value), f"must be {' or '.join(kind.__name__ for kind in allowed)}")
        if type(value) is float:
            require(value - value == 0, name, value, "must be finite")
        if type(value) is int:
            require(abs(value) < 2**53, name, "", "must be below 2^53")


def _check_range(config: Any, *names: str, why: str = "", **bounds: float) -> None:
    """Refuse a number that is not within all bounds, which are named as in `_BOUNDS`. None is no number."""
    said = " and ".join(f"{word.replace('_', ' ')} {bound:.10g}" for word, bound in bounds.items())
    for name in names:
        value = getattr(config, name)
        fits = value is None or all(_BOUNDS[word](value, bound) for word, bound in bounds.items())
        require(fits, name, value, f"must be {said}{why}")


def _nearest_divisor(number: int, near: int) -> int:
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - near))
