"""Evaluation against sums made by hand in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinygpt_jax import evaluation
from tinygpt_jax.config import ModelConfig
from tinygpt_jax.data.batches import Batch, evaluation_batches
from tinygpt_jax.data.corpus import Split
from tinygpt_jax.errors import UserError
from tinygpt_jax.evaluation import Evaluation, StoryWindows, evaluate, token_bytes, unigram, whole_stories
from tinygpt_jax.model import GPT
from tinygpt_jax.tokenizer import compact

BYTES = compact(np.zeros(50_257, int))  # the 256 single bytes and end-of-text, 256
LENGTHS = token_bytes(BYTES)


def tiny_model(context_length=8, scale=10.0):
    shape = {"n_layers": 1, "n_heads": 1, "d_model": 8, "d_ff": 8, "norm": "pre"}
    model = GPT(ModelConfig(vocab_size=257, context_length=context_length, **shape))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return model, jax.tree.map(lambda p: p * scale, params)


def stories(*lengths):
    """A split of random stories of so many tokens, end-of-text included."""
    tokens = np.random.default_rng(0).integers(0, 256, sum(lengths)).astype(np.uint16)
    offsets = np.cumsum([0, *lengths])
    tokens[offsets[1:] - 1] = BYTES.end_of_text
    return Split(tokens, offsets, n_bytes=0, entropy=None)


def split_of(*texts):
    """The same of given texts, in single bytes."""
    encoded = [[*BYTES.encode(text), BYTES.end_of_text] for text in texts]
    tokens = np.concatenate(encoded).astype(np.uint16)
    return Split(tokens, np.cumsum([0, *map(len, encoded)]), n_bytes=0, entropy=None)


def random_batch(forward, share):
    """A quarter of the targets are end-of-text, a quarter are what the model guesses."""
    random = np.random.default_rng(1)
    inputs, targets = random.integers(0, 256, (2, 4, 8)).astype(np.int32)
    targets[:, ::4], targets[:, 1::4] = 256, forward(inputs).argmax(-1)[:, 1::4]
    return Batch(inputs, targets, random.random((4, 8)) < share)


@pytest.mark.parametrize("logits_bytes", [1, 4 * 4 * 257 * 3, 2**28])
def test_evaluate_sums_what_the_mask_lets_through(monkeypatch, logits_bytes):
    """Target by target in float64, with logits of one position, of three and of all eight at once."""
    monkeypatch.setattr(evaluation, "_EVALUATED_BYTES", logits_bytes)
    evaluation._batch_sums.clear_cache()
    model, params = tiny_model()
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    batches = [random_batch(forward, share) for share in (1.0, 0.5, 0.0)]
    result = evaluate(model, params, batches, LENGTHS)

    nats, correct, tokens, n_bytes = [], 0, 0, 0
    for batch in batches:
        all_logits = np.array(forward(batch.inputs), np.float64)
        for logits, target in zip(all_logits[batch.mask], batch.targets[batch.mask], strict=True):
            nats.append(math.log(np.exp(logits).sum()) - logits[target])
            correct += logits.argmax() == target
            tokens, n_bytes = tokens + 1, n_bytes + (target != 256)
    assert 0 < correct < tokens
    assert result.loss == pytest.approx(math.fsum(nats) / tokens, rel=1e-6)
    assert (result.token_accuracy, result.tokens, result.n_bytes) == (correct / tokens, tokens, n_bytes)
    assert result.perplexity == pytest.approx(math.exp(math.fsum(nats) / tokens), rel=1e-5)
    assert result.bits_per_byte == pytest.approx(math.fsum(nats) / math.log(2) / n_bytes, rel=1e-6)


def test_many_batches_lose_no_precision():
    """Guards: totals in float32, in which the same batch 2,000 times gives another mean than once."""
    model, params = tiny_model()
    (batch,) = whole_stories(stories(9, 14), 8, 8, 256)
    once, often = evaluate(model, params, [batch]), evaluate(model, params, [batch] * 2000)
    assert often.loss == pytest.approx(once.loss, rel=1e-13)
    assert often.tokens == 2000 * 23


def test_evaluation_compiles_once_and_leaves_the_parameters():
    """Guards: a last batch of another shape, and donated parameters."""
    model, params = tiny_model(context_length=6)
    before = evaluation._batch_sums._cache_size()
    evaluate(model, params, whole_stories(stories(9, 3, 14, 2), 6, 4, 256), LENGTHS)
    assert evaluation._batch_sums._cache_size() == before + 1
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("context_length", [1, 2, 5, 8])
def test_windows_show_each_token_once_with_its_own_story(context_length):
    """Read back row by row: the token before each target, and all before that in the row, are those of its story,
    at least half a context of them or all there are. Guards: stories that see their neighbours, tokens counted
    twice or never, windows cut short."""
    split = stories(1, 2, 5, 8, 9, 10, 16, 23)
    counted = []
    windows = StoryWindows(split, context_length, 256)
    for inputs, targets, mask in (windows[i] for i in range(len(windows))):
        for place in np.flatnonzero(mask):
            context = inputs[: place + 1].tolist()
            matches = [
                (story, end)
                for story in range(8)
                for end in range(split.offsets[story], split.offsets[story + 1])
                if split.tokens[end] == targets[place]
                and [256, *split.tokens[split.offsets[story] : end]][-len(context) :] == context
                and len(context) >= min(end - split.offsets[story] + 1, (context_length + 1) // 2)
            ]
            assert matches
            counted.append(targets[place])
    assert counted == split.tokens.tolist()


def test_bits_per_byte_of_a_uniform_model():
    """By hand: 'né' and 'abcdefgh' have 3 + 8 bytes and, with their ends, 13 tokens of log2(257) bits each. In
    padded rows of 4 the second story is cut to 4 tokens: 4 + 4 tokens, 3 + 4 bytes. Guards: bytes of text that
    was cut off, or characters in place of bytes."""
    model, params = tiny_model(context_length=4, scale=0.0)
    split = split_of("né", "abcdefgh")
    whole = evaluate(model, params, whole_stories(split, 4, 2, 256), LENGTHS)
    assert (whole.tokens, whole.n_bytes) == (13, 11)
    assert whole.bits_per_byte == pytest.approx(13 * math.log2(257) / 11)
    packed = evaluate(model, params, evaluation_batches(split, "packed", 4, 2, 256), LENGTHS)
    assert packed == whole
    padded = evaluate(model, params, evaluation_batches(split, "padded", 4, 2, 256), LENGTHS)
    assert (padded.tokens, padded.n_bytes) == (8, 7)
    assert padded.bits_per_byte == pytest.approx(8 * math.log2(257) / 7)


def test_unigram(monkeypatch):
    """By hand: 'aab' and 'a' are a a b end a end, of entropy 1/2 ln 2 + 1/6 ln 6 + 1/3 ln 3."""
    monkeypatch.setattr(evaluation, "_COUNTED_AT_ONCE", 4)
    result = unigram(split_of("aab", "a").tokens, LENGTHS)
    assert result.loss == pytest.approx(math.log(2) / 2 + math.log(6) / 6 + math.log(3) / 3)
    assert (result.token_accuracy, result.tokens, result.n_bytes) == (0.5, 6, 4)


def test_a_diverged_model_has_a_perplexity():
    """exp overflows beyond a loss of 709."""
    assert Evaluation(1e4, 0.0, 1).perplexity == math.inf
    assert math.isnan(Evaluation(math.nan, 0.0, 1).perplexity)


def test_nothing_to_evaluate_is_an_error():
    model, params = tiny_model()
    empty = Batch(np.zeros((1, 8), np.int32), np.zeros((1, 8), np.int32), np.zeros((1, 8), bool))
    for batches in ([], [empty]):
        with pytest.raises(UserError, match="no tokens"):
            evaluate(model, params, batches)
