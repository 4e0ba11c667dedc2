"""Tokenise stories in advance and look at them: python -m experiments.prepare --data SOURCE"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from experiments import cli, presets
from tinygpt_jax.config import Config, DataConfig
from tinygpt_jax.data.batches import Batch, Rows
from tinygpt_jax.data.corpus import Corpus, prepare
from tinygpt_jax.data.words import frequent_words
from tinygpt_jax.errors import require
from tinygpt_jax.terminal import harmless


@dataclass(frozen=True)
class Start:
    """The flag that decides which defaults the others have."""

    preset: str | None = None  # with the vocabulary, layout and context of a preset (default: of the reference system)


@dataclass(frozen=True)
class Arguments(Start):
    """Tokenise a source of stories, say what is in it, and draw it. Training does the first part by itself."""

    data: DataConfig = field(default_factory=DataConfig)
    context_length: int = 128  # tokens in a row, for what is said about rows
    show: int = 0  # print this many training rows as the model sees them
    workers: int | None = None  # processes that tokenise (default: one for each core, at most 8)
    streaming: bool = False  # read tinystories from the hub without downloading it first
    rebuild: bool = False  # throw away what was prepared before
    verify: bool = False  # compare all checksums again, not only those of files that have changed
    pictures: Path | None = None  # folder for the pictures (default: beside the prepared corpus)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, prepare, and report."""
    start = cli.parse(Start, argv, others=True)
    config = presets.get(start.preset).config if start.preset else Config()
    default = Arguments(start.preset, config.data, config.model.context_length)
    arguments = cli.parse(Arguments, argv, default=default)
    for name, lowest in (("context_length", 1), ("show", 0), ("workers", 1)):
        value = getattr(arguments, name)
        require(value is None or value >= lowest, name, value, f"must be at least {lowest}")
    corpus = prepare(
        arguments.data,
        workers=arguments.workers,
        streaming=arguments.streaming,
        rebuild=arguments.rebuild,
        verify=arguments.verify,
    )
    print(table(corpus, arguments.context_length))
    if arguments.verify:
        print("all checksums match")
    rows = Rows(corpus.train, arguments.data.layout, arguments.context_length, corpus.tokenizer.end_of_text)
    for index in range(min(arguments.show, len(rows))):
        print(f"\nrow {index}\n{show_row(rows[index], corpus)}")
    draw(corpus, arguments)


def table(corpus: Corpus, context_length: int) -> str:
    """What is in a corpus, as lines of text."""
    splits = {"training": corpus.train, "held out": corpus.validation}
    lines = [("", *splits)]
    lines.append(("stories", *(f"{split.n_stories:,}" for split in splits.values())))
    lines.append(("tokens", *(f"{len(split.tokens):,}" for split in splits.values())))
    lines.append(("bytes per token", *(f"{s.n_bytes / (len(s.tokens) - s.n_stories):.2f}" for s in splits.values())))
    for layout in ("padded", "packed"):
        rows = [Rows(split, layout, context_length, corpus.tokenizer.end_of_text) for split in splits.values()]
        lines.append((f"{layout} rows of {context_length}", *(f"{len(r):,}" for r in rows)))
        lines.append(("  share of tokens kept", *(f"{r.targets_kept() / len(r.tokens):.1%}" for r in rows)))
        lines.append(("  share of padding", *(f"{r.padding_share():.1%}" for r in rows)))
    columns = [f"{name:<24}{left:>16}{right:>16}" for name, left, right in lines]
    return "\n".join(columns + [f"{name:<24}  {value}" for name, value in _about(corpus).items()])


def _about(corpus: Corpus) -> dict[str, str]:
    manifest = corpus.manifest
    read, options = manifest["stories"], manifest["options"]
    first_bad = f" ({'; '.join(manifest['bad_records'][:3])})" if read["bad"] else ""
    return {
        "vocabulary": f"{corpus.tokenizer.name}, {corpus.tokenizer.vocab_size:,} tokens",
        "  spelled in bytes": f"{manifest['tokenizer']['spelled_in_bytes']:.3%} of GPT-2's tokens in training stories",
        "duplicates": f"{read['duplicates']:,}, {'dropped' if options['drop_duplicates'] else 'kept'}",
        "repaired encoding": f"{read['repaired']:,}" if options["fix_encoding"] else "not asked for",
        "left out": f"{read['empty']:,} empty, {read['bad']:,} malformed{first_bad}",
        "held out by": manifest["held_out_by"],
        "folder": str(corpus.folder),
    }


def show_row(row: Batch, corpus: Corpus) -> str:
    """What the model reads, what it should say at each place, and which places are in the loss."""
    runs = ((counts, len(list(run))) for counts, run in itertools.groupby(row.mask))
    mask = ", then ".join(f"{length} that {'count' if counts else 'do not'}" for counts, length in runs)
    return f"inputs   {_tokens(corpus, row.inputs)}\ntargets  {_tokens(corpus, row.targets)}\nmask     {mask}"


def draw(corpus: Corpus, arguments: Arguments) -> None:
    """The pictures of a corpus."""
    from tinygpt_jax.report import plots
    from tinygpt_jax.runs.corpus_summary import length_histogram

    folder, context_length = arguments.pictures or corpus.folder, arguments.context_length
    lengths = length_histogram(np.diff(corpus.train.offsets), context_length)
    path = folder / "word_cloud.png"
    if words := frequent_words(corpus):
        print(f"{path}: {plots.word_cloud(words, path)}")
    else:
        print(f"{path.name} is left out: there is no word in the training stories")
    path = folder / "story_lengths.png"
    print(f"{path}: {plots.story_lengths(lengths, context_length, path, arguments.data.layout)}")
    path = folder / "token_ranks.png"
    print(f"{path}: {plots.token_ranks(corpus.counts, path)}")


def _tokens(corpus: Corpus, ids: np.ndarray) -> str:
    """Tokens with a bar between them; padding, which is end-of-text again and again, as one."""
    tokens = []
    for token, run in itertools.groupby(ids):
        text, times = harmless(corpus.tokenizer.decode([int(token)])).replace("\n", "\\n"), len(list(run))
        if token == corpus.tokenizer.end_of_text:
            tokens.append("<|endoftext|>" if times == 1 else f"<|endoftext|> x {times}")
        else:
            tokens += [text] * times
    return "│".join(tokens)


if __name__ == "__main__":
    cli.run(main)
