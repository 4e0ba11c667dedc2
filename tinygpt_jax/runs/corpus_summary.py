"""`corpus.json` of a run folder: what a report needs to know about the stories, so that it can do without them."""

import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from tinygpt_jax.config import Config
from tinygpt_jax.data.batches import evaluation_batches
from tinygpt_jax.data.corpus import Corpus
from tinygpt_jax.evaluation import token_bytes, unigram
from tinygpt_jax.files import write_atomically

_STORIES_TO_COUNT = 20_000  # for the most frequent words, so many stories are enough
_FREQUENT_WORDS = 300


def write_summary(workdir: Path, config: Config, corpus: Corpus) -> None:
    """Write `corpus.json` when a run starts.

    Entropies are in nats per token of the validation stories: `unigram_entropy` is the lowest loss possible without
    context, `entropy` the lowest possible at all, where the stories' exact probability is known and none is cut
    (null elsewhere).

    Raises:
        UserError: `workdir` cannot be written to.
    """
    train, validation = corpus.train, corpus.validation
    context_length, layout = config.model.context_length, config.data.layout
    spelled = token_bytes(corpus.tokenizer)
    cut = layout == "padded" and bool((np.diff(validation.offsets) > context_length).any())
    summary = {
        "source": config.data.source,
        "vocab_size": corpus.tokenizer.vocab_size,
        "layout": layout,
        "context_length": context_length,
        "train_stories": train.n_stories,
        "train_tokens": len(train.tokens),
        "validation_stories": validation.n_stories,
        "validation_tokens": len(validation.tokens),
        "shown_bytes_per_token": _shown_bytes_per_token(config, corpus, spelled),
        "unigram_entropy": unigram(validation.tokens, spelled).loss,
        "entropy": None if cut or validation.entropy is None else validation.entropy / len(validation.tokens),
        "length_histogram": length_histogram(np.diff(train.offsets), context_length),
        "words": _frequent_words(corpus),
    }
    text = json.dumps(summary, indent=1) + "\n"
    write_atomically(workdir / "corpus.json", text.encode())


def length_histogram(lengths: np.ndarray, context_length: int) -> dict[str, list[int]]:
    """Count stories by their length in tokens, end-of-text included: what `story_lengths` draws.

    Returns:
        `edges`, [bins + 1], and `counts`, [bins], as `numpy.histogram` has them: a bin holds the lengths from its
        left edge up to its right one, without that. Bins are equally wide; one more may hold a long tail. One edge
        is context_length + 1, so that the stories too long for the context are whole bins.
    """
    shortest, longest = int(lengths.min()), int(lengths.max())
    # One story of 50,000 tokens must not squeeze all others into one bin: of those that are too long for the context,
    # the longest in a thousand share theirs.
    high = max(int(np.quantile(lengths, 0.999)), min(longest, context_length + 1))
    width = max(1, math.ceil((high + 1 - shortest) / 50))
    first = (shortest - context_length - 1) // width
    last = -((context_length - high) // width)
    edges = context_length + 1 + width * np.arange(first, last + 1)
    if longest >= edges[-1]:
        edges = np.append(edges, longest + 1)
    counts, _ = np.histogram(lengths, edges)
    return {"edges": edges.tolist(), "counts": counts.tolist()}


def _shown_bytes_per_token(config: Config, corpus: Corpus, spelled: np.ndarray) -> float:
    """Bytes that a validation target spells on average: with it a loss per token becomes one per byte."""
    batches = evaluation_batches(
        corpus.validation,
        config.data.layout,
        config.model.context_length,
        batch_size=1024,
        end_of_text=corpus.tokenizer.end_of_text,
    )
    shown = [batch.targets[batch.mask] for batch in batches]
    return sum(int(spelled[tokens].sum()) for tokens in shown) / sum(len(tokens) for tokens in shown)


def _frequent_words(corpus: Corpus) -> dict[str, int]:
    """Word -> occurrences, in evenly spaced training stories; a word counts in any case and has its commonest."""
    offsets, count = corpus.train.offsets, corpus.train.n_stories
    spellings: Counter[str] = Counter()
    for index in np.arange(0, count, max(1, count // _STORIES_TO_COUNT)):
        story = corpus.tokenizer.decode(corpus.train.tokens[offsets[index] : offsets[index + 1]])
        spellings.update(re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", story))
    occurrences: defaultdict[str, int] = defaultdict(int)
    commonest: dict[str, str] = {}
    for spelling, times in spellings.most_common():
        occurrences[spelling.lower()] += times
        commonest.setdefault(spelling.lower(), spelling)
    return {commonest[word]: times for word, times in Counter(occurrences).most_common(_FREQUENT_WORDS)}
