"""`corpus.json`: the figures about the stories that a report shows."""

import json
import math
import re
from collections import Counter

import numpy as np
import pytest

from tinygpt_jax.config import Config, DataConfig, ModelConfig
from tinygpt_jax.data.corpus import prepare
from tinygpt_jax.data.grammar import log_probability
from tinygpt_jax.report import write_report
from tinygpt_jax.runs.corpus_summary import write_summary


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return prepare(DataConfig(source="builtin", vocabulary="compact", builtin_stories=400, cache_dir=str(cache)))


def texts(split, tokenizer):
    return [tokenizer.decode(split.tokens[a:b]) for a, b in zip(split.offsets, split.offsets[1:], strict=False)]


def summary_of(corpus, folder, context_length=128, layout="padded"):
    config = Config(
        model=ModelConfig(vocab_size=corpus.tokenizer.vocab_size, context_length=context_length),
        data=DataConfig(source="builtin", layout=layout),
    )
    write_summary(folder, config, corpus)
    return json.loads((folder / "corpus.json").read_text(encoding="utf-8"))


def test_figures_are_those_of_the_stories(corpus, tmp_path):
    """Against the stories' texts: entropy from the grammar itself, bytes and words counted one by one."""
    summary = summary_of(corpus, tmp_path)
    validation = texts(corpus.validation, corpus.tokenizer)
    tokens = len(corpus.validation.tokens)
    assert summary["entropy"] == pytest.approx(-math.fsum(map(log_probability, validation)) / tokens, rel=1e-6)
    assert summary["shown_bytes_per_token"] == pytest.approx(sum(len(t.encode()) for t in validation) / tokens)
    counts = np.bincount(corpus.validation.tokens)
    frequency = counts[counts > 0] / tokens
    assert summary["unigram_entropy"] == pytest.approx(-(frequency * np.log(frequency)).sum())
    assert (summary["train_stories"], summary["validation_stories"]) == (
        corpus.train.n_stories,
        corpus.validation.n_stories,
    )
    assert sum(summary["length_histogram"]["counts"]) == corpus.train.n_stories
    words = Counter(re.findall(r"[a-z']+", " ".join(texts(corpus.train, corpus.tokenizer)).lower()))
    counted = {word.lower(): count for word, count in summary["words"].items()}
    assert len(counted) <= 300 and counted["little"] == words["little"] and counted["the"] == words["the"]
    assert "Lily" in summary["words"] and "lily" not in summary["words"]


def test_the_best_loss_is_not_claimed_for_cut_stories(corpus, tmp_path):
    """The grammar's probability is that of whole stories; where rows cut them, their entropy is not known."""
    assert summary_of(corpus, tmp_path, context_length=80)["entropy"] is None
    packed = summary_of(corpus, tmp_path, context_length=80, layout="packed")
    assert packed["entropy"] == summary_of(corpus, tmp_path)["entropy"]


def test_bytes_are_those_of_the_tokens_shown(corpus, tmp_path):
    """Where stories are cut, bits per byte must divide by the bytes before the cut."""
    spelled = shown = 0
    for text in texts(corpus.validation, corpus.tokenizer):
        tokens = corpus.tokenizer.encode(text)[:20]
        spelled, shown = spelled + len(corpus.tokenizer.decode_bytes(tokens)), shown + len(tokens)
    assert summary_of(corpus, tmp_path, context_length=20)["shown_bytes_per_token"] == pytest.approx(spelled / shown)


def test_a_report_can_be_drawn_from_it(corpus, tmp_path):
    (tmp_path / "config.json").write_text(Config().to_json())
    summary_of(corpus, tmp_path)
    write_report(tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"word_cloud", "story_lengths"}
