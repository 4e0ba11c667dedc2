"""What each choice of a recipe gains: python -m experiments.measuring.ablation --list NAME --to FOLDER

train      trains every variant of a list on as many tokens, with several seeds, each in a run folder of its own,
           FOLDER/variant/seed; what is finished is not trained again, and what was stopped goes on
time       lets the variants' updates take turns, and measures how long each takes beside the first's
table      only prints what is there

Each part ends with the table of all that was found so far. The lists are in ablations.toml, beside this file, and you
can add your own there; `--list try` takes seconds.
"""

import gc
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from experiments import cli
from experiments.measuring.ablation_table import Result, as_table, summary
from experiments.measuring.tables import lines_of, print_table, spread, take_turns
from experiments.measuring.variants import Variant, read_list
from tinygpt_jax.config import FREE_TO_CHANGE, Config
from tinygpt_jax.data.stories import find_source
from tinygpt_jax.devices import describe_devices, restart_with_huge_pages, use_device
from tinygpt_jax.errors import UsageError, UserError, require
from tinygpt_jax.files import read_text, sha256_of, write_atomically
from tinygpt_jax.runs.folder import described

TIMES = "times.json"  # in the folder
MEASURED = "measured.json"  # in that of a run
_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Arguments:
    """Train a list's variants on as many tokens with several seeds, and say what each gains and costs."""

    list: str  # its name in ablations.toml
    to: Path  # folder of the runs
    source: str | None = None  # (or --data) stories to learn from (default: the preset's)
    valid: str | None = None  # other stories, to measure on (default: those that each run holds out)
    seeds: int = 3  # runs of each variant, with the seeds 0, 1, 2 ...
    steps: int | None = None  # of the base (default: its own); those of the others change in proportion
    part: Literal["train", "time", "table"] = "train"
    repeats: int = 7  # time: turns of each variant, of a second or more
    markdown: bool = False  # print the table as Markdown
    json: bool = False  # print one JSON object and no table


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, do a part of the work, and print the table."""
    arguments = cli.parse(Arguments, argv)
    for name in ("seeds", "repeats", "steps"):
        value = getattr(arguments, name)
        require(value is None or value >= 1, f"--{name}", value, "must be at least 1")
    variants = read_list(arguments.list, arguments.source, arguments.steps)
    for flag, source in (("--data", arguments.source), ("--valid", arguments.valid)):
        if source is not None:  # a wrong name is told before the training and not after it
            try:
                find_source(source, 1)
            except UsageError as error:
                raise UsageError(str(error).replace("--data", flag, 1)) from None
    if arguments.part == "table" and not arguments.to.is_dir():
        raise UserError(f"--to {arguments.to}: no such folder")
    _check_lengths(variants, arguments)
    use_device()
    if arguments.part == "train":
        for seed in range(arguments.seeds):  # all variants of a seed first: they can be compared early
            for variant in variants:
                _finish(variant, seed, arguments)
    elif arguments.part == "time":
        found = json.dumps(time_updates(variants, arguments.repeats), indent=1)
        write_atomically(arguments.to / TIMES, f"{found}\n".encode())
    report = summary(variants, {variant.name: results(variant, arguments) for variant in variants}, times(arguments.to))
    report = {"list": arguments.list, "measured on": arguments.valid or "held-out stories of each run", **report}
    if arguments.json:
        print(json.dumps(report, indent=1))
        return
    title, table = f"{arguments.list}: {report['tokens']:,} tokens a run", as_table(report)
    if arguments.markdown:
        head, *lines = (f"| {' | '.join(cells)} |" for cells in lines_of(table))
        print("\n".join([head, re.sub("[^|]+", "---", head), *lines]))
    else:
        print_table(title, table)


def _check_lengths(variants: Sequence[Variant], arguments: Arguments) -> None:
    """Runs of another length are another experiment: to go on with them would stretch their schedules.

    Raises:
        UserError: there are such.
    """
    for variant in variants:
        for seed in range(arguments.seeds):
            workdir = _workdir(variant, seed, arguments)
            trained = described(workdir)
            if trained is not None and trained.training.steps != variant.updates:
                raise UserError(
                    f"{workdir} is a run of {trained.training.steps:,} updates, and not of {variant.updates:,}: give "
                    "--steps as then, or another folder with --to"
                )


def _finish(variant: Variant, seed: int, arguments: Arguments) -> None:
    """Train a run to its end and measure it, as far as that is not done.

    Raises:
        UserError: it was stopped, or cannot be trained.
    """
    import jax

    from tinygpt_jax.training.loop import train
    from tinygpt_jax.training.metrics import NonFiniteError

    if read_result(variant, seed, arguments) is not None:
        return
    workdir, config = _workdir(variant, seed, arguments), _seeded(variant.config, seed)
    print(f"\n{variant.name}, seed {seed}, in {workdir}", file=sys.stderr, flush=True)
    try:
        if not train(config, workdir):
            raise UserError(f"{workdir} was stopped; the same command goes on from there")
        result = measure(workdir, seed, arguments.valid)
    except NonFiniteError as error:  # a rate that is too high is a finding too
        print(f"warning: {variant.name}, seed {seed}: {error}", file=sys.stderr)
        result = Result(seed)
    document = {"of": _of(workdir, arguments.valid), "result": vars(result)}
    write_atomically(workdir / MEASURED, (json.dumps(document, indent=1) + "\n").encode())
    jax.clear_caches()  # of programs that no other run needs
    gc.collect()


def measure(workdir: Path, seed: int, valid: str | None) -> Result:
    """A run's best checkpoint on all of its held-out stories, or on others, whole, as `experiments.evaluate` does."""
    from tinygpt_jax.data.corpus import prepare
    from tinygpt_jax.evaluation import evaluate, token_bytes, whole_stories
    from tinygpt_jax.training.checkpoint import open_run

    run = open_run(workdir)
    if valid is None:
        split = prepare(run.config.data).validation
    else:
        data = replace(run.config.data, source=valid)
        split = prepare(data, tokenizer=run.tokenizer, held_out_only=True).validation
    length = run.config.model.context_length
    batches = whole_stories(split, length, max(1, _TOKENS_PER_BATCH // length), run.tokenizer.end_of_text)
    found = evaluate(run.model, run.params, batches, token_bytes(run.tokenizer))
    entropy = None if split.entropy is None else split.entropy / found.tokens
    return Result(seed, run.step, found.bits_per_byte, found.loss, entropy)


def results(variant: Variant, arguments: Arguments) -> list[Result]:
    """Those of a variant that are there, by seed."""
    found = (read_result(variant, seed, arguments) for seed in range(arguments.seeds))
    return [result for result in found if result is not None]


def read_result(variant: Variant, seed: int, arguments: Arguments) -> Result | None:
    """What was measured of a run, if it was: of this variant to its end, on these stories."""
    workdir = _workdir(variant, seed, arguments)
    config, trained, path = _seeded(variant.config, seed), described(workdir), workdir / MEASURED
    if trained is None or not path.exists():
        return None
    if trained.differences(config, ignore=FREE_TO_CHANGE - {"steps", "source"}):
        return None
    document = json.loads(read_text(path))
    return Result(**document["result"]) if document["of"] == _of(workdir, arguments.valid) else None


def time_updates(variants: Sequence[Variant], repeats: int) -> dict[str, Any]:
    """Let the updates of all variants take turns of a second or more, and compare each turn with the first's."""
    from experiments.measuring.peers.ours import Trainer
    from experiments.measuring.peers.turns import updates
    from tinygpt_jax.data.corpus import prepare

    turns = {}
    for variant in variants:
        tokens = prepare(variant.config.data).tokenizer.vocab_size
        config = replace(variant.config, model=replace(variant.config.model, vocab_size=tokens))
        turns[variant.name] = updates(partial(_ask, Trainer(config)), config)
    measured = take_turns(turns, repeats, uncounted=2)
    first = measured[variants[0].name]
    times = {
        variant.name: {
            "flags": variant.flags,
            "milliseconds": spread(1000 * seconds for seconds in measured[variant.name]),
            # Turn by turn: what slows the machine down for a while slows both.
            "ratio": spread(a / b for a, b in zip(measured[variant.name], first, strict=True)),
        }
        for variant in variants
    }
    return {"device": describe_devices(), "times": times}


def times(folder: Path) -> dict[str, Any]:
    """What `time_updates` has found, if it has."""
    path = folder / TIMES
    return json.loads(read_text(path)) if path.exists() else {}


def _ask(trainer: Any, question: Any, *arguments: Any) -> Any:
    return question(trainer, *arguments)


def _workdir(variant: Variant, seed: int, arguments: Arguments) -> Path:
    return arguments.to / variant.folder / str(seed)


def _seeded(config: Config, seed: int) -> Config:
    return replace(config, training=replace(config.training, seed=seed))


def _of(workdir: Path, valid: str | None) -> dict[str, Any]:
    """What a measurement is of: it counts as long as these are the same."""
    stories = None if valid is None else find_source(valid, 1).fingerprint
    return json.loads(json.dumps({"metrics": sha256_of(workdir / "metrics.jsonl"), "stories": stories}))


if __name__ == "__main__":
    restart_with_huge_pages()
    cli.run(main)
