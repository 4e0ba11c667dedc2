"""Every setting of a run: four frozen dataclasses, their validation, and their JSON form.

The defaults are the reference system. This is the only place where a default is written down: `experiments`
turns the fields into flags, and `config.json` in a run folder is `Config.to_json()`.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tinygpt_jax.errors import UsageError, require

# Far above what trains on one machine; a configuration from a stranger cannot ask for more work or memory than this.
_MOST = {
    "vocab_size": 2**16,  # token ids are 16 bits wide
    "context_length": 2**20,
    "n_layers": 2**10,
    "n_heads": 2**16,
    "d_model": 2**16,
    "d_ff": 2**18,
}
MOST_STEPS = 99_999_999  # what eight digits, the names of checkpoints, can count


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network. Everything that changes a parameter's shape or meaning is here."""

    vocab_size: int = 50_257  # number of tokens; set from the tokenizer when a run starts
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
        for name, most in _MOST.items():
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
            require(getattr(self, name) <= most, name, getattr(self, name), f"must be at most {most}")
        require(
            self.d_model % self.n_heads == 0,
            "n_heads",
            self.n_heads,
            f"must divide d_model {self.d_model}; try n_heads {_nearest_divisor(self.d_model, self.n_heads)}",
        )
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must be at least 0 and below 1")
        if self.positions == "sinusoidal":
            require(self.d_model % 2 == 0, "d_model", self.d_model, "must be even for sinusoidal positions")

    @property
    def head_dim(self) -> int:
        """Features per attention head."""
        return self.d_model // self.n_heads


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
        require(
            0 < self.validation_fraction < 1,
            "validation_fraction",
            self.validation_fraction,
            "must be between 0 and 1",
        )
        require(self.builtin_stories >= 2, "builtin_stories", self.builtin_stories, "must be at least 2")
        if self.max_vocab is not None:
            require(self.max_vocab >= 1, "max_vocab", self.max_vocab, "must be at least 1")
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
            require(getattr(self, name) > 0, name, getattr(self, name), "must be above 0")
        for name in ("warmup_steps", "weight_decay"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        require(self.warmup_steps <= MOST_STEPS, "warmup_steps", self.warmup_steps, f"must be at most {MOST_STEPS}")
        for name in ("beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "must be at least 0 and below 1")
        require(0 <= self.final_fraction <= 1, "final_fraction", self.final_fraction, "must be between 0 and 1")


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how often, and on what."""

    epochs: float = 5.0  # passes over the training stories, when steps is not given
    steps: int | None = None  # number of updates; overrides epochs
    batch_size: int = 32  # rows per update, over all devices and micro-batches
    gradient_accumulation: int = 1  # split each batch into this many pieces to save memory
    seed: int = 0  # initial weights, order of stories, dropout and samples
    eval_every: int = 1000  # steps between evaluations (each also saves a checkpoint)
    eval_batches: int = 50  # fixed validation batches per evaluation
    log_every: int = 20  # steps between lines of metrics.jsonl
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators that have it
    remat: bool = False  # recompute activations in the backward pass: less memory, about a third more work
    tensorboard: bool = False  # also write TensorBoard events (needs the extra `tensorboard`)

    def __post_init__(self) -> None:
        _check_types(self)
        require(self.epochs > 0, "epochs", self.epochs, "must be above 0")
        if self.steps is not None:
            require(1 <= self.steps <= MOST_STEPS, "steps", self.steps, f"must be at least 1 and at most {MOST_STEPS}")
        for name in ("batch_size", "gradient_accumulation", "eval_every", "eval_batches", "log_every"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        require(0 <= self.seed < 2**31, "seed", self.seed, "must be between 0 and 2147483647")
        require(
            self.batch_size % self.gradient_accumulation == 0,
            "gradient_accumulation",
            self.gradient_accumulation,
            f"must divide batch_size {self.batch_size}",
        )


# What may differ between a checkpoint and the run that continues it: it changes no update's result. (A longer run
# with a cosine schedule does get other rates from then on; that is what its user asks for. A moved source is fine
# as long as its stories are the same, which the corpus fingerprint tells.)
FREE_TO_CHANGE = frozenset(
    {"epochs", "steps", "eval_every", "eval_batches", "log_every", "tensorboard", "source", "cache_dir", "remat"}
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
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"the configuration is not JSON: {error}") from None
        groups = {item.name: item for item in dataclasses.fields(cls)}
        _check_names(document, groups, "the configuration")
        return cls(**{name: _group_from_dict(item.type, name, document.get(name, {})) for name, item in groups.items()})

    def differences(self, other: "Config", ignore: frozenset[str] = frozenset()) -> list[str]:
        """Lines like `model.d_model: 128 here, 256 there` for every field that differs and is not ignored."""
        lines = []
        for group in dataclasses.fields(self):
            mine, theirs = getattr(self, group.name), getattr(other, group.name)
            for item in dataclasses.fields(mine):
                a, b = getattr(mine, item.name), getattr(theirs, item.name)
                if a != b and item.name not in ignore:
                    lines.append(f"{group.name}.{item.name}: {a} here, {b} there")
        return lines


def _group_from_dict(cls: Any, name: str, values: Any) -> Any:
    _check_names(values, {item.name for item in dataclasses.fields(cls)}, name)
    return cls(**values)


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


def _nearest_divisor(number: int, near: int) -> int:
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: abs(n - near))
