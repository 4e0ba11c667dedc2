"""All figures about the stories that a model writes, from one set of stories written at temperature 1."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tinygpt_jax.config import Sampling
from tinygpt_jax.data.corpus import Corpus, Split
from tinygpt_jax.generation import generate
from tinygpt_jax.judging import ngram_model, pairs, scoring
from tinygpt_jax.judging.divergence import divergence_section, divergences, true_next
from tinygpt_jax.judging.figures import Judgement, Section
from tinygpt_jax.judging.form import form_section
from tinygpt_jax.judging.memorisation import memorisation_section
from tinygpt_jax.judging.reading import Storyteller
from tinygpt_jax.judging.storytelling import grammar_section, plot_section
from tinygpt_jax.model import GPT
from tinygpt_jax.terminal import progress
from tinygpt_jax.tokenizer import Tokenizer

STORIES = 256  # that the model writes, and held-out ones
MOST_TOKENS = 384  # of a story; longer ones are cut, of either sort. Of TinyStories some 3 % are longer
_TRUE_STORIES = 128  # held-out ones at whose every token the distributions are compared
_SEED = 0


def judge_stories(
    model: GPT,
    params: Any,
    tokenizer: Tokenizer,
    corpus: Corpus,
    step: int,
    *,
    n_stories: int = STORIES,
    max_new_tokens: int = MOST_TOKENS,
) -> Judgement:
    """Write stories and judge them; says on standard error how far it is.

    Args:
        model: the model.
        params: its parameters.
        tokenizer: its vocabulary, which is the corpus's.
        corpus: the stories that it was trained on, and held-out ones.
        step: how many updates it has learned from; kept with the figures.
        n_stories: how many stories are written, and held-out ones compared, where there are so many.
        max_new_tokens: where stories are cut.
    """
    samples = generate(
        model,
        params,
        tokenizer,
        [""],
        Sampling(temperature=1.0),
        max_new_tokens=max_new_tokens,
        seed=_SEED,
        num_samples=n_stories,
        show_progress=True,
    )
    human = list(_evenly(corpus.validation, n_stories))
    cut = [story[:max_new_tokens] for story in human]
    sections = []
    if corpus.validation.entropy is not None:  # the storyteller's own
        storyteller = Storyteller()
        stories = [(sample.text, sample.finished) for sample in samples]
        readings = [storyteller.read(*story) for story in progress(stories, "judging")]
        sections += [grammar_section(stories, readings), plot_section(storyteller, readings)]
        texts = [tokenizer.decode(story) for story in human[:: -(-len(human) // _TRUE_STORIES)]]
        true = true_next(storyteller, tokenizer, texts)
        sections.append(divergence_section(divergences(model, params, true, tokenizer.end_of_text), true))
    sections.append(_pairs(model, params, tokenizer, corpus))
    written = [np.array(sample.tokens, np.int64) for sample in samples]
    sections.append(memorisation_section(corpus.train.tokens, {"written": written, "held-out": cut}))
    ended = [len(story) < max_new_tokens for story in human]  # its end-of-text fits too
    columns = {
        "written": ([sample.text for sample in samples], [sample.finished for sample in samples]),
        "held-out": ([tokenizer.decode(story) for story in cut], ended),
    }
    sections.append(form_section(columns))
    about = (
        f"{len(samples)} stories written at temperature 1 with seed {_SEED}, and {len(human)} held-out ones; all cut "
        f"at {max_new_tokens} tokens"
    )
    return Judgement(step, about, sections)


def _evenly(split: Split, most: int) -> Iterator[np.ndarray]:
    """The tokens of stories evenly spaced over a split, without their end-of-text."""
    count = min(most, split.n_stories)
    for number in range(count):
        index = number * split.n_stories // count
        yield np.asarray(split.tokens[split.offsets[index] : split.offsets[index + 1] - 1], np.int64)


def _pairs(model: GPT, params: Any, tokenizer: Tokenizer, corpus: Corpus) -> Section:
    made = pairs.make_pairs()
    counting = [pair for pair, whole in zip(made, pairs.all_in_vocabulary(tokenizer, made), strict=True) if whole]
    left_out = [f"{len(made) - len(counting)} of {len(made)} pairs are left out: a word is not in the vocabulary"]
    if not counting:
        return Section("pairs", "no pair can be written in the vocabulary of this run", [], left_out)
    texts = [tokenizer.encode(text) for pair in counting for text in (pair.right, pair.wrong)]
    counted = (corpus.train.tokens, tokenizer.vocab_size, texts, tokenizer.end_of_text)
    log_p = {
        "model": scoring.text_log_probabilities(model, params, texts, tokenizer.end_of_text),
        "5-gram": ngram_model.text_log_probabilities(*counted, ngram_model.ORDER),
        "unigram": ngram_model.text_log_probabilities(*counted, 1),
    }
    section = pairs.pair_section(counting, {name: (values[::2], values[1::2]) for name, values in log_p.items()})
    section.notes.extend(left_out * (len(counting) < len(made)))
    return section
