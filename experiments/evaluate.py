"""Measure a trained model on whole stories, or the ones it writes: python -m experiments.evaluate --workdir runs/"""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from experiments import cli
from tinygpt_jax.devices import Device, use_device
from tinygpt_jax.errors import UsageError, UserError

if TYPE_CHECKING:
    from tinygpt_jax.data.corpus import Corpus, Split
    from tinygpt_jax.evaluation import Evaluation
    from tinygpt_jax.training.checkpoint import Run

TOKENS_PER_BATCH = 4096
SPELLED_SHARE = 0.2  # of GPT-2's tokens; with more of them in bytes, the figures say little about the model
FIGURES = ("loss", "perplexity", "bits_per_byte", "token_accuracy", "tokens", "n_bytes")
ROWS = {
    "whole_stories": "every token, with as much of its own story before it as fits into the context",
    "padded_rows": "stories as training with this layout sees them: cut at the context length",
    "packed_rows": "stories as training with this layout sees them: end to end, cut into rows",
    "unigram": "the best possible without looking at the context: each token as likely as it is frequent here",
    "exact_entropy": "the best possible at all: the probabilities with which the storyteller wrote these stories",
}


@dataclass(frozen=True)
class Arguments:
    """Measure a trained model on all stories of a split, or of another source, on any device."""

    workdir: Path = Path("runs")  # folder of the run
    source: str | None = None  # (or --data) other stories: all of a file, the validation split of what has one
    split: Literal["validation", "train"] = "validation"  # of the run's own stories
    stories: bool = False  # in place of that, write stories, judge them, and keep the figures for the report
    checkpoint: Literal["best", "last"] = "best"  # by validation loss, or the newest
    device: Device = "auto"  # gpu fails where there is none
    json: bool = False  # print one JSON object


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, measure, and print a table or one JSON object."""
    arguments = cli.parse(Arguments, argv)
    if arguments.source is not None and arguments.split == "train":
        raise UsageError("--split train is for the run's own stories; leave it out with --data")
    if arguments.stories and (arguments.source is not None or arguments.split == "train"):
        raise UsageError("--stories is for the run's own stories, held-out ones beside: leave --data and --split out")
    use_device(arguments.device)

    from tinygpt_jax.training.checkpoint import open_run

    run = open_run(arguments.workdir, arguments.checkpoint)
    if arguments.stories:
        _judge(run, arguments)
        return
    split, split_name = _open_split(run, arguments)
    about = {
        "workdir": str(arguments.workdir),
        "step": run.step,
        "data": arguments.source or run.config.data.source,
        "split": split_name,
        "stories": split.n_stories,
    }
    if not arguments.json:
        print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    results = _measure(run, split, with_training_rows=arguments.source is None)
    if arguments.json:
        figures = {name: {figure: getattr(rows, figure) for figure in FIGURES} for name, rows in results.items()}
        print(json.dumps(about | figures))
    else:
        print(_table(results))


def _open_split(run: "Run", arguments: Arguments) -> tuple["Split", str]:
    """The stories to measure on, and which they are of their source: a split, or all."""
    from tinygpt_jax.data.corpus import prepare
    from tinygpt_jax.data.stories import HASH_SPLIT

    if arguments.source is not None:
        source = run.config.data.source
        data = dataclasses.replace(run.config.data, source=arguments.source)
        corpus = prepare(data, tokenizer=run.tokenizer, held_out_only=True)
        name = "all" if corpus.manifest["held_out_by"] == HASH_SPLIT else "validation"
        if name == "all" and Path(arguments.source).expanduser().resolve() == Path(source).expanduser().resolve():
            print("warning: most of these are the stories that the run was trained on", file=sys.stderr)
        spelled = corpus.manifest["tokenizer"]["spelled_in_bytes"] or 0
        if spelled > SPELLED_SHARE:
            what = "of GPT-2's tokens are spelled in bytes here: they are not in the run's vocabulary"
            print(f"warning: {spelled:.0%} {what}", file=sys.stderr)
        return corpus.validation, name
    corpus = _own_corpus(run)
    return (corpus.train if arguments.split == "train" else corpus.validation), arguments.split


def _own_corpus(run: "Run") -> "Corpus":
    """The stories that the run was trained on, and those it held out."""
    from tinygpt_jax.data.corpus import prepare

    source = run.config.data.source
    kept = run.tokenizer if run.config.origin.init_from else None  # no matter which tokens occur in these stories
    try:
        corpus = prepare(run.config.data, tokenizer=kept)
    except UsageError:  # which speaks of a flag that was given to the training
        inside = (
            "" if os.path.isabs(os.path.expanduser(source)) else ", or call this in the folder where it was trained"
        )
        where = f"this run's stories came from {source}, and there are none now"
        raise UserError(
            f"{where}: put them, or a link to them, there{inside}; evaluate --data measures on others"
        ) from None
    if corpus.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(f"{source} has changed since the run: its vocabulary is another now; try --data {source}")
    if run.corpus not in (None, corpus.fingerprint):
        raise UserError(f"{source} has changed since the run: its stories are others now; try --data {source}")
    return corpus


def _judge(run: "Run", arguments: Arguments) -> None:
    """Write stories, judge them, print the figures, and keep them in the run's folder."""
    from tinygpt_jax.judging.figures import table, write_judgement
    from tinygpt_jax.judging.judge import judge_stories
    from tinygpt_jax.runs.folder import check_folder
    from tinygpt_jax.terminal import harmless

    check_folder(arguments.workdir)  # before the minutes of work
    corpus = _own_corpus(run)
    judgement = judge_stories(run.model, run.params, run.tokenizer, corpus, run.step)
    path = write_judgement(arguments.workdir, judgement)
    if arguments.json:
        print(judgement.to_json())
        return
    sections = "\n\n".join(table(section) for section in judgement.sections)
    print(harmless(f"step {judgement.step:,}: {judgement.about}\n\n{sections}"))
    print(f"\nkept in {path}; python -m experiments.report --workdir {arguments.workdir} shows it on the run's page")


def _measure(run: "Run", split: "Split", with_training_rows: bool) -> dict[str, "Evaluation"]:
    from tinygpt_jax.data.batches import EvaluationBatches, Rows
    from tinygpt_jax.evaluation import Evaluation, evaluate, token_bytes, unigram, whole_stories
    from tinygpt_jax.terminal import progress

    lengths = token_bytes(run.tokenizer)
    context_length, end_of_text = run.config.model.context_length, run.tokenizer.end_of_text
    batch_size = max(1, TOKENS_PER_BATCH // context_length)

    def measured(batches) -> Evaluation:
        return evaluate(run.model, run.params, progress(batches, "evaluating"), lengths)

    results = {"whole_stories": measured(whole_stories(split, context_length, batch_size, end_of_text))}
    if with_training_rows:
        layout = run.config.data.layout
        rows = Rows(split, layout, context_length, end_of_text)
        results[f"{layout}_rows"] = measured(EvaluationBatches(rows, batch_size))
    results["unigram"] = unigram(split.tokens, lengths)
    if split.entropy is not None:
        tokens = results["unigram"].tokens
        results["exact_entropy"] = Evaluation(split.entropy / tokens, None, tokens, split.n_bytes)
    return results


def _table(results: dict[str, "Evaluation"]) -> str:
    """The figures of each kind of rows, and below what each kind is."""
    lines = [
        f"{'':<16}{'nats/token':>12}{'perplexity':>12}{'bits/byte':>12}{'accuracy':>12}{'tokens':>14}{'bytes':>14}"
    ]
    for name, result in results.items():
        accuracy = "" if result.token_accuracy is None else f"{result.token_accuracy:.2%}"
        perplexity = f"{result.perplexity:,.3f}" if result.perplexity < 1e6 else f"{result.perplexity:.3g}"
        lines.append(
            f"{name.replace('_', ' '):<16}{result.loss:>12.4f}{perplexity:>12}{result.bits_per_byte:>12.4f}"
            f"{accuracy:>12}{result.tokens:>14,}{result.n_bytes:>14,}"
        )
    lines += [f"{name.replace('_', ' '):<16}{ROWS[name]}" for name in results]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
