"""`corpus.json`: the figures about the stories that a report shows."""

import json
import math
import re
from collections import Counter

import pytest

from tinygpt_jax.config import Config, DataConfig, ModelConfig, TrainingConfig
from tinygpt_jax.data.batches import EvaluationBatches, Rows
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


def summary_of(corpus, folder, context_length=128, layout="padded", **training):
    config = Config(
        model=ModelConfig(vocab_size=corpus.tokenizer.vocab_size, context_length=context_length),
        data=DataConfig(source="builtin", layout=layout),
        training=TrainingConfig(**training),
    )
    write_summary(folder, config, corpus)
    return json.loads((folder / "corpus.json").read_text(encoding="utf-8"))


def test_figures_are_those_of_the_stories(corpus, tmp_path):
    """Against the stories' texts: entropy from the grammar itself, words counted one by one."""
    summary = summary_of(corpus, tmp_path)
    validation = texts(corpus.validation, corpus.tokenizer)
    tokens = len(corpus.validation.tokens)
    assert summary["validation_entropy"] == pytest.approx(-math.fsum(map(log_probability, validation)) / tokens)
    stories = (corpus.train.n_stories, corpus.validation.n_stories)
    assert (summary["train_stories"], summary["validation_stories"]) == stories
    assert sum(summary["length_histogram"]["counts"]) == corpus.train.n_stories
    words = Counter(re.findall(r"[a-z']+", " ".join(texts(corpus.train, corpus.tokenizer)).lower()))
    counted = {word.lower(): count for word, count in summary["words"].items()}
    assert len(counted) <= 300 and counted["little"] == words["little"] and counted["the"] == words["the"]
    assert "Lily" in summary["words"] and "lily" not in summary["words"]


@pytest.mark.parametrize("context_length", [128, 20])
def test_what_a_loss_is_compared_with_is_of_the_rows_that_training_evaluates(corpus, tmp_path, context_length):
    """Row by row. The entropy of all stories is another number, by more than the distances that are reported; where
    stories are cut, bits per byte must divide by the bytes before the cut."""
    summary = summary_of(corpus, tmp_path, context_length, batch_size=4, eval_batches=3)
    end = corpus.tokenizer.end_of_text
    batches = EvaluationBatches(Rows(corpus.validation, "padded", context_length, end), 4, limit=3)
    shown = [row[counts].tolist() for batch in batches for row, counts in zip(batch.targets, batch.mask, strict=True)]
    tokens = sum(map(len, shown))
    assert (summary["evaluated_rows"], summary["evaluated_tokens"]) == (12, tokens)
    spelled = sum(len(corpus.tokenizer.decode_bytes(row)) for row in shown)
    assert summary["evaluated_bytes_per_token"] == pytest.approx(spelled / tokens)
    shares = [count / tokens for count in Counter(token for row in shown for token in row).values()]
    assert summary["evaluated_unigram_entropy"] == pytest.approx(-math.fsum(p * math.log(p) for p in shares))
    if context_length == 20:
        assert summary["evaluated_entropy"] is None
    else:
        nats = -math.fsum(log_probability(corpus.tokenizer.decode(row)) for row in shown)
        assert summary["evaluated_entropy"] == pytest.approx(nats / tokens)
        assert abs(summary["validation_entropy"] / summary["evaluated_entropy"] - 1) > 1e-3


def test_the_best_loss_is_not_claimed_for_cut_stories(corpus, tmp_path):
    """The grammar's probability is that of whole stories; where rows cut them, their entropy is not known."""
    packed = {"context_length": 80, "layout": "packed"}
    assert summary_of(corpus, tmp_path, **packed, batch_size=4, eval_batches=3)["evaluated_entropy"] is None
    all_rows = summary_of(corpus, tmp_path, **packed)
    assert all_rows["evaluated_entropy"] == pytest.approx(all_rows["validation_entropy"])


def test_a_report_can_be_drawn_from_it(corpus, tmp_path):
    (tmp_path / "config.json").write_text(Config().to_json())
    summary_of(corpus, tmp_path)
    write_report(tmp_path)
    assert {path.stem for path in (tmp_path / "plots").iterdir()} == {"word_cloud", "story_lengths"}
