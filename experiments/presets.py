"""The named recipes. Each says what it is for, how to run it, and what to expect."""

from dataclasses import dataclass, replace

from tinygpt_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig
from tinygpt_jax.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """A configuration with its story."""

    about: str
    config: Config


_SMALL = ModelConfig(n_layers=4, n_heads=4, d_model=128, d_ff=512, dropout=0.0, norm="pre")
_FOR_CPUS = OptimizerConfig(
    learning_rate=3e-3, schedule="cosine", warmup_steps=100, final_fraction=0.02, beta2=0.99, weight_decay=0.1
)

PRESETS = {
    "quickstart": Preset(
        "1.1 M parameters on the built-in stories, for any CPU, in minutes",
        Config(
            # No built-in story is longer than 120 tokens.
            replace(_SMALL, context_length=120, tie_embeddings=False),
            DataConfig(source="builtin", vocabulary="compact"),
            _FOR_CPUS,
            TrainingConfig(steps=2200, batch_size=16, eval_every=550, eval_batches=40),
        ),
    ),
    "laptop": Preset(
        "1.9 M parameters on real stories that you give with --data, for a CPU, in about a quarter of an hour",
        Config(
            replace(_SMALL, context_length=256, n_layers=6, activation="gelu", positions="rotary"),
            DataConfig(vocabulary="compact", max_vocab=5000, layout="packed", recut=True, validation_fraction=0.05),
            # A rare token's gradient comes in few updates: their squares need a long mean.
            replace(
                _FOR_CPUS,
                learning_rate=4e-3,
                warmup_steps=300,
                beta2=0.999,
                weight_decay=0.3,
                matrices="muon",
                muon_rate=1.5,
            ),
            TrainingConfig(steps=4400, batch_size=4, eval_every=550, eval_batches=40),
        ),
    ),
    "tinystories": Preset(
        "the reference system: 124 M parameters on TinyStories, post-LN, batch 32, 5 epochs, for one NVIDIA GPU",
        Config(training=TrainingConfig(log_every=100)),
    ),
    "tinystories-modern": Preset(
        "the same width, depth and data with pre-LN, GELU, rotary positions, a head of its own, Muon, packed rows, a "
        "larger batch and rate with warmup and cosine",
        Config(
            # With rotary positions a tied head of 768 features finds the input token in its own hidden state at first.
            ModelConfig(norm="pre", activation="gelu", dropout=0.0, positions="rotary", tie_embeddings=False),
            DataConfig(layout="packed"),
            OptimizerConfig(
                learning_rate=6e-4,
                schedule="cosine",
                warmup_steps=500,
                beta2=0.95,
                weight_decay=0.1,
                matrices="muon",
            ),
            TrainingConfig(epochs=2, batch_size=256, log_every=50, eval_every=500),
        ),
    ),
}


def get(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PRESETS:
        raise UsageError(f"unknown preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]
