"""`corpus.json` of a run folder: what a report needs to know about the stories, so that it can do without them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt_jax.config import Config
from tinygpt_jax.data.batches import EvaluationBatches, Rows
from tinygpt_jax.data.corpus import Corpus
from tinygpt_jax.data.grammar import log_probability
from tinygpt_jax.data.words import frequent_words
from tinygpt_jax.evaluation import token_bytes, unigram
from tinygpt_jax.files import write_atomically
from tinygpt_jax.tokenizer import Tokenizer


def write_summary(workdir: Path, config: Config, corpus: Corpus) -> None:
    """Write `corpus.json` when a run starts.

    Fields whose names begin with `evaluated` are of the validation rows that training evaluates, so that the loss
    there can be compared with them. Entropies are in nats per token: `evaluated_unigram_entropy` is the lowest loss
    possible without context, `evaluated_entropy` the lowest possible at all, where the built-in storyteller's whole
    stories are evaluated, and `validation_entropy` the same of all its validation stories (null elsewhere).

    Raises:
        UserError: `workdir` cannot be written to.
    """
    train, validation = corpus.train, corpus.validation
    summary = {
        "source": config.data.source,
        "fingerprint": corpus.fingerprint,
        "vocab_size": corpus.tokenizer.vocab_size,
        "layout": config.data.layout,
        "context_length": config.model.context_length,
        "train_stories": train.n_stories,
        "train_tokens": len(train.tokens),
        "validation_stories": validation.n_stories,
        "validation_tokens": len(validation.tokens),
        "validation_entropy": None if validation.entropy is None else validation.entropy / len(validation.tokens),
        **_evaluated(config, corpus),
        "length_histogram": length_histogram(np.diff(train.offsets), config.model.context_length),
        "words": frequent_words(corpus),
    }
    write_atomically(workdir / "corpus.json", (json.dumps(summary, indent=1) + "\n").encode())


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


def _evaluated(config: Config, corpus: Corpus) -> dict[str, Any]:
    """Figures of the rows that training evaluates."""
    tokenizer, training, length = corpus.tokenizer, config.training, config.model.context_length
    rows = Rows(corpus.validation, config.data.layout, length, tokenizer.end_of_text)
    batches = EvaluationBatches(rows, training.batch_size, training.eval_batches)
    targets = np.concatenate([batch.targets[batch.mask] for batch in batches])
    spelled = token_bytes(tokenizer)
    log_p = _log_probability(targets, tokenizer) if corpus.validation.entropy is not None else -math.inf
    return {
        "evaluated_rows": batches.n_rows,
        "evaluated_tokens": len(targets),
        "evaluated_bytes_per_token": float(spelled[targets].mean()),
        "evaluated_unigram_entropy": unigram(targets, spelled).loss,
        "evaluated_entropy": -log_p / len(targets) if math.isfinite(log_p) else None,
    }


def _log_probability(tokens: np.ndarray, tokenizer: Tokenizer) -> float:
    """The log-probability in nats of these built-in stories; -inf if rows have cut one: it is no story any more."""
    ends = np.flatnonzero(tokens == tokenizer.end_of_text) + 1
    stories = np.split(tokens, ends[ends < len(tokens)])
    return math.fsum(log_probability(tokenizer.decode(story)) for story in stories)
