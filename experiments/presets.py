"""The named recipes. Each says what it is for, how to run it, and what to expect."""

from dataclasses import dataclass

from tinygpt_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig
from tinygpt_jax.errors import UsageError


@dataclass(frozen=True)
class Preset:
    """A configuration with its story."""

    about: str
    config: Config


PRESETS = {
    "quickstart": Preset(
        "about 0.9 M parameters on the built-in stories, for any CPU, in minutes",
        Config(
            model=ModelConfig(
                n_layers=4, n_heads=4, d_model=128, d_ff=512, dropout=0.0, norm="pre", positions="learned"
            ),
            data=DataConfig(source="builtin", vocabulary="compact"),
            optimizer=OptimizerConfig(
                learning_rate=3e-3, schedule="cosine", warmup_steps=50, beta2=0.99, weight_decay=0.1
            ),
            training=TrainingConfig(steps=800, batch_size=32, eval_every=200, eval_batches=20),
        ),
    ),
    "tinystories": Preset(
        "the reference system: 124 M parameters on TinyStories, post-LN, batch 32, 5 epochs, for one NVIDIA GPU",
        Config(),
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
