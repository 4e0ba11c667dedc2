"""Mistakes planted in training, and whether `compare` finds them: python -m experiments.measuring.planted

Sound runs of several seeds, and one run with each mistake, are trained for a part of a preset's updates. None of the
mistakes stands in the run's settings: its `config.json` is that of a sound run. Each is tried with a seed of the
reference, whose first losses are known up to rounding, and with another one.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from experiments import cli, presets
from experiments.measuring.tables import Table, print_table
from tinygpt_jax.config import Config
from tinygpt_jax.devices import describe_devices, restart_with_huge_pages, use_device
from tinygpt_jax.errors import UsageError, UserError, require
from tinygpt_jax.files import read_text, write_atomically
from tinygpt_jax.report.comparison import Verdict, verdict
from tinygpt_jax.report.reference import CURVES, shipped
from tinygpt_jax.runs.record import read_record

DONE, SOUND = "done", "sound "
WRONG_BETA2 = (0.999, 0.95, 0.5)
_BETA2 = "beta2 of {}"
DROPOUT_LEFT_ON = 0.1


@dataclass(frozen=True)
class Arguments:
    """Train sound runs and runs with a planted mistake, and compare each with the reference curves."""

    to: Path = Path("runs/planted")  # folder of the runs; what is finished there is not trained again
    preset: str = "quickstart"  # or laptop
    source: str | None = None  # (or --data) stories, where the preset has none of its own
    seeds: int = 10  # how many sound runs
    first_seed: int = 100  # of the sound runs: other ones than the reference's
    share: float = 0.25  # of the preset's updates


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, train, and compare."""
    arguments = cli.parse(Arguments, argv)
    require(arguments.seeds >= 0, "--seeds", arguments.seeds, "must be at least 0")
    require(arguments.first_seed >= 0, "--first-seed", arguments.first_seed, "must be at least 0")
    require(0 < arguments.share <= 1, "--share", arguments.share, "must be above 0 and at most 1")
    known = {reference.preset: reference for reference in shipped()}
    if arguments.preset not in known:
        raise UsageError(f"--preset {arguments.preset}: there are reference curves of {', '.join(known) or 'none'}")
    config = presets.get(arguments.preset).config
    if arguments.source:
        if config.data.source == "builtin":
            raise UsageError(f"--data {arguments.source}: {arguments.preset} learns from the built-in stories")
        config = replace(config, data=replace(config.data, source=arguments.source))
    use_device()
    table: Table = {}
    training = config.training
    # To the end of a line of metrics.jsonl: an evaluation is compared with the updates before it once they are logged.
    updates = math.ceil(arguments.share * (training.steps or 1) / training.log_every) * training.log_every
    for name, (seed, mistake) in runs(arguments, config, known[arguments.preset].seeds).items():
        workdir = arguments.to / arguments.preset / name
        if not (workdir / DONE).exists() or read_text(workdir / DONE) != str(updates):
            print(f"\n{name}", file=sys.stderr, flush=True)
            train(replace(config, training=replace(config.training, seed=seed)), mistake, workdir, updates)
        found = verdict(read_record(workdir), [known[arguments.preset]])
        if found.why_not:
            raise UserError(f"{workdir}: {found}")
        first = min((excursion.first for excursion in found.excursions), default=None)
        table[name] = {"outside": "no" if first is None else f"from step {first:,}", "what": _what(found)}
    print_table(f"{arguments.preset}, {updates:,} updates, {describe_devices()}", table)
    sound = [row["outside"] for name, row in table.items() if name.startswith(SOUND)]
    planted = [row["outside"] for name, row in table.items() if not name.startswith(SOUND)]
    flagged = [sum(outside != "no" for outside in kind) for kind in (sound, planted)]
    print(f"\noutside: {flagged[0]} of {len(sound)} sound runs, {flagged[1]} of {len(planted)} with a mistake")


def _what(found: Verdict) -> str:
    return "; ".join(f"{CURVES[excursion.curve]} {excursion.side}" for excursion in found.excursions)


def runs(arguments: Arguments, config: Config, known: Sequence[int]) -> dict[str, tuple[int, str]]:
    """The name of each run -> its seed, and the planted mistake, with a seed of the reference's and another one."""
    mistakes = [mistake for mistake in MISTAKES if mistake != _BETA2.format(config.optimizer.beta2)]
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    sound = {f"{SOUND}{seed}": (seed, "") for seed in seeds}
    return sound | {
        f"{mistake}, seed {seed}": (seed, mistake) for mistake in mistakes for seed in (known[0], arguments.first_seed)
    }


def train(config: Config, mistake: str, workdir: Path, updates: int) -> None:
    """A run's first updates, with a mistake or (empty) none, and what a run's folder tells of them."""
    import jax

    from tinygpt_jax.data.corpus import prepare
    from tinygpt_jax.evaluation import evaluate
    from tinygpt_jax.runs.checkpoint_files import Progress
    from tinygpt_jax.runs.corpus_summary import write_summary
    from tinygpt_jax.training.metrics import TrainingLog
    from tinygpt_jax.training.parts import Parts
    from tinygpt_jax.training.sharding import make_mesh, put_batch
    from tinygpt_jax.training.step import initial_state

    parts = Parts(config, prepare(config.data), make_mesh())
    write_atomically(workdir / "config.json", parts.config.to_json().encode())
    write_summary(workdir, parts.config, parts.corpus)
    log = TrainingLog(parts, workdir, Progress(0, parts.corpus.fingerprint))
    evaluated, batch_of = parts.model, lambda batch: put_batch(batch, parts.mesh)
    if mistake:
        evaluated, batch_of = MISTAKES[mistake](parts, batch_of)
    state = initial_state(parts.model, parts.optimizer, config.training.seed, parts.mesh)
    for step, batch in enumerate(parts.batches.iterate()):
        state, metrics = parts.update(state, batch_of(batch), step)
        log.add(step + 1, metrics)
        if (step + 1) % config.training.eval_every == 0:
            log.read()
            log.evaluated(step + 1, evaluate(evaluated, state.params, map(batch_of, parts.validation)))
        if step + 1 >= updates:
            break
    log.read()
    log.close()
    jax.clear_caches()
    write_atomically(workdir / DONE, str(updates).encode())


def _remake(parts: Any, model: Any, optimizer: Any) -> None:
    from tinygpt_jax.training.step import make_train_step

    parts.model, parts.optimizer = model, optimizer
    parts.update = make_train_step(model, optimizer, parts.config.training, parts.mesh)


def unscaled(parts: Any, batch_of: Any) -> tuple[Any, Any]:
    """Attention whose scores are not divided by the root of the head's features."""
    import jax.numpy as jnp

    right = parts.model.arithmetic
    wrong, scale = ModuleType("unscaled"), parts.model.config.head_dim**0.5

    def self_attention(qkv, n_heads):
        query, key_value = jnp.split(qkv, (qkv.shape[-1] // 3,), axis=-1)
        return right.self_attention(jnp.concatenate([query * scale, key_value], axis=-1), n_heads)

    vars(wrong).update(vars(right), self_attention=self_attention)
    _remake(parts, parts.model.clone(arithmetic=wrong), parts.optimizer)
    return parts.model, batch_of


def unshifted(parts: Any, batch_of: Any) -> tuple[Any, Any]:
    """Each place has to tell the token that it is given, and not the next."""
    return parts.model, lambda batch: batch_of(batch._replace(targets=batch.inputs))


def beta2(value: float) -> Callable[..., tuple[Any, Any]]:
    """An optimizer whose mean of squared gradients decays otherwise than the settings say."""

    def plant(parts: Any, batch_of: Any) -> tuple[Any, Any]:
        from tinygpt_jax.training.optimizer import make_optimizer

        wrong = replace(parts.config.optimizer, beta2=value)
        _remake(parts, parts.model, make_optimizer(wrong, parts.total_steps))
        return parts.model, batch_of

    return plant


def dropout_left_on(parts: Any, batch_of: Any) -> tuple[Any, Any]:
    """Evaluation that drops features. The presets for CPUs train without dropout, so a rate is planted too."""
    import jax

    from tinygpt_jax.model import GPT

    class Dropping(GPT):
        def hidden(self, tokens, dropout_key=None):
            return super().hidden(tokens, jax.random.key(0))

    config = dataclasses.replace(parts.model.config, dropout=DROPOUT_LEFT_ON)
    return Dropping(config, parts.model.compute_dtype, arithmetic=parts.model.arithmetic), batch_of


# What each changes in a run's parts, or in how it makes batches; it returns the model to evaluate, and that.
MISTAKES: dict[str, Callable[..., tuple[Any, Any]]] = {
    "scores not scaled": unscaled,
    "targets not shifted": unshifted,
    **{_BETA2.format(value): beta2(value) for value in WRONG_BETA2},
    "dropout left on in evaluation": dropout_left_on,
}


if __name__ == "__main__":
    restart_with_huge_pages()
    cli.run(main)
