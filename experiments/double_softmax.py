"""Why the reference reported a perplexity of 42,385: python -m experiments.double_softmax

Its network ends in a softmax, and its loss, a cross-entropy, applies softmax again. The second softmax sees numbers
between 0 and 1, so whatever the network says, the loss is ln(sum of e^p) - p[target]: with V tokens never above
ln(V - 1 + e) and never below ln(V - 1 + e) - 1. For V = 50,257 that is a perplexity between 18,489 and 50,259, and
the gradient carries a factor p[target], which starts at 1 / V. This trains one small model both ways.
"""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from experiments import cli
from tinygpt_jax.config import DataConfig, ModelConfig, OptimizerConfig
from tinygpt_jax.devices import use_device


@dataclass(frozen=True)
class Arguments:
    """Train the same small model with cross-entropy and with softmax applied twice, and draw both curves."""

    source: str = "builtin"  # (or --data) builtin, tinystories, or a file or folder of stories
    output: Path = Path("double_softmax.png")  # the picture
    seconds: float = 60.0  # training time of each of the two
    learning_rate: float = 1e-3  # the same for both
    json: bool = False  # print the curves as JSON


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, train twice, draw."""
    arguments = cli.parse(Arguments, argv)
    use_device()
    curves = {
        name: train(arguments.source, double, arguments.seconds, arguments.learning_rate)
        for name, double in (("cross-entropy", False), ("softmax applied twice", True))
    }

    from tinygpt_jax.report.plots import comparison_curves

    vocab_size = ModelConfig().vocab_size
    comparison_curves(curves, floor=floor(vocab_size), uniform=vocab_size, path=arguments.output)
    if arguments.json:
        print(json.dumps(curves))
        return
    for name, curve in curves.items():
        print(
            f"{name}: perplexity {curve[0][1]:,.0f} at step {curve[0][0]}, {curve[-1][1]:,.0f} at step {curve[-1][0]}"
        )
    print(f"the lowest perplexity that softmax applied twice can report: {floor(vocab_size):,.0f}")
    print(f"picture: {arguments.output}")


def floor(vocab_size: int) -> float:
    """The perplexity that softmax applied twice reports for a network that is always certain and always right."""
    return (vocab_size - 1 + math.e) / math.e


def train(source: str, double: bool, seconds: float, learning_rate: float) -> list[tuple[int, float]]:
    """(step, reported perplexity) of a small model trained for a time; each point is the mean of ten updates."""
    import jax
    import jax.numpy as jnp
    import optax

    from tinygpt_jax.data.batches import TrainingBatches
    from tinygpt_jax.data.corpus import prepare
    from tinygpt_jax.model import GPT
    from tinygpt_jax.training.optimizer import make_optimizer

    corpus = prepare(DataConfig(source=source, vocabulary="gpt2", builtin_stories=5000))
    model = GPT(ModelConfig(context_length=64, n_layers=2, n_heads=4, d_model=64, d_ff=256, dropout=0.0))
    batches = TrainingBatches(
        corpus.train, "padded", context_length=64, batch_size=16, seed=0, end_of_text=corpus.tokenizer.end_of_text
    )
    optimizer = make_optimizer(OptimizerConfig(learning_rate=learning_rate), total_steps=1)
    params = model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, opt_state, batch):
        loss, gradients = jax.value_and_grad(
            lambda p: reported_loss(model.apply({"params": p}, batch.inputs), batch, double)
        )(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state = optimizer.init(params)
    curve, losses, started = [], [], None
    for step, batch in enumerate(batches.iterate(0), 1):
        params, opt_state, loss = update(params, opt_state, batch)
        losses.append(loss)
        started = started or time.monotonic()  # the clock runs from the first update on: compiling is no training
        if step == 1 or step % 10 == 0:
            curve.append((step, math.exp(sum(map(float, losses)) / len(losses))))
            losses.clear()
            if time.monotonic() - started > seconds:
                return curve
    raise AssertionError("batches never end")


def reported_loss(logits, batch, double: bool):
    """Mean cross-entropy over the batch's targets, of the logits or, by mistake, of their softmax."""
    import jax.numpy as jnp

    from tinygpt_jax.functional import cross_entropy

    if double:
        exponents = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
        logits = exponents / jnp.sum(exponents, axis=-1, keepdims=True)
    return cross_entropy(logits, batch.targets, batch.mask)


if __name__ == "__main__":
    cli.run(main)
