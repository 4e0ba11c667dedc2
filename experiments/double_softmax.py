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
from pathlib import Path
from tempfile import TemporaryFile

from experiments import cli
from tinygpt_jax.config import DataConfig, ModelConfig, OptimizerConfig, TrainingConfig
from tinygpt_jax.devices import restart_with_huge_pages, use_device
from tinygpt_jax.errors import UserError, require
from tinygpt_jax.files import check_output, disk_errors
from tinygpt_jax.terminal import progress

TWICE = "softmax applied twice"


@dataclass(frozen=True)
class Arguments:
    """Train the same small model with cross-entropy and with softmax applied twice, and draw both curves."""

    source: str = "builtin"  # (or --data) builtin, tinystories, or a file or folder of stories
    output: Path = Path("double_softmax.png")  # the picture
    seconds: float = 60.0  # training time of each of the two
    learning_rate: float = 1e-3  # the same for both
    json: bool = False  # print the curves as JSON


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, train twice, print, draw."""
    arguments = cli.parse(Arguments, argv)
    require(0 < arguments.seconds < math.inf, "seconds", arguments.seconds, "must be above 0, and finite")
    check_output("--output", arguments.output, "picture")
    with disk_errors(arguments.output, "choose another --output"):  # before the training and not after it
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=arguments.output.parent, suffix=".partial").close()
    use_device()

    from tinygpt_jax.report.plots import comparison_curves

    curves = {name: train(arguments, name) for name in ("cross-entropy", TWICE)}
    vocab_size = ModelConfig().vocab_size
    if arguments.json:
        print(json.dumps(curves))
    else:
        for name, curve in curves.items():
            (first, at_first), (last, at_last) = curve[0], curve[-1]
            print(f"{name}: perplexity {at_first:,.0f} at step {first}, {at_last:,.0f} at step {last}")
        print(f"the lowest perplexity that {TWICE} can report: {floor(vocab_size):,.0f}", flush=True)
    # Last, because it can fail, and nobody should train again for the figures.
    comparison_curves(curves, floor=floor(vocab_size), uniform=vocab_size, path=arguments.output)
    if not arguments.json:
        print(f"picture: {arguments.output}")


def floor(vocab_size: int) -> float:
    """The perplexity that softmax applied twice reports for a network that is always certain and always right."""
    return (vocab_size - 1 + math.e) / math.e


def train(arguments: Arguments, name: str) -> list[tuple[int, float]]:
    """(step, reported perplexity) of a small model trained for a time; each point is the mean of ten updates."""
    import jax

    from tinygpt_jax.data.batches import Rows, TrainingBatches
    from tinygpt_jax.data.corpus import prepare
    from tinygpt_jax.functional import cross_entropy
    from tinygpt_jax.model import GPT
    from tinygpt_jax.training.optimizer import make_optimizer
    from tinygpt_jax.training.sharding import make_mesh, put_batch
    from tinygpt_jax.training.step import TrainState, make_train_step

    class SoftmaxTwice(GPT):
        """The mistake: `cross_entropy` takes what it is given for logits, and applies softmax to it."""

        def loss(self, tokens, targets, mask, dropout_key=None, **arrangement):
            return cross_entropy(jax.nn.softmax(self(tokens, dropout_key)), targets, mask)

    corpus = prepare(DataConfig(source=arguments.source, vocabulary="gpt2", builtin_stories=5000))
    shape = ModelConfig(context_length=64, n_layers=2, n_heads=4, d_model=64, d_ff=256, dropout=0.0)
    model, mesh = SoftmaxTwice(shape) if name == TWICE else GPT(shape), make_mesh()
    training = TrainingConfig(batch_size=16)
    rows = Rows(corpus.train, "padded", 64, corpus.tokenizer.end_of_text)
    batches = TrainingBatches(rows, training.batch_size, seed=0)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=arguments.learning_rate), total_steps=1)
    params = model.init(jax.random.key(0), jax.numpy.zeros((1, 1), jax.numpy.int32))["params"]
    state = TrainState(jax.numpy.int32(0), params, optimizer.init(params))
    update = make_train_step(model, optimizer, training, mesh)
    curve, losses, started = [], [], None
    for step, batch in enumerate(progress(batches.iterate(), name)):
        state, metrics = update(state, put_batch(batch, mesh), step)
        losses.append(metrics.loss)
        started = started or time.monotonic()  # the clock runs from the first update on: compiling is no training
        if step == 0 or (step + 1) % 10 == 0:
            mean = sum(map(float, losses)) / len(losses)
            if not mean < 100:
                raise UserError(f"the loss was {mean} before step {step + 1}; try a lower --learning-rate")
            curve.append((step + 1, math.exp(mean)))
            losses.clear()
            if time.monotonic() - started > arguments.seconds:
                return curve
    raise AssertionError("batches never end")


if __name__ == "__main__":
    restart_with_huge_pages()
    cli.run(main)
