"""Generating text against the plain way to do the same. (`test_model` compares single steps with the full forward.)"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinygpt_jax.config import ModelConfig
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.generation import Sampling, decoding, encode_prompt, generate, stream
from tinygpt_jax.generation import text as generation
from tinygpt_jax.generation.decoding import fit_window
from tinygpt_jax.generation.sampling import as_scalars, mark_seen, next_token
from tinygpt_jax.model import GPT, empty_cache
from tinygpt_jax.tokenizer import compact

CONTEXT = 12  # not a power of two: the widths that prompts are rounded up to meet its end
PROMPTS = ["", "a", "abcd", "abcdefgh", "abcdefghijk", "a prompt longer than the context"]
GREEDY = Sampling(temperature=0.0)
BYTES = compact(np.zeros(50_257, int))  # the 256 single bytes and end-of-text, 256


def build(vocab_size):
    """A small random model whose favourite tokens stand out, so that rounding does not decide."""
    shape = {"context_length": CONTEXT, "n_layers": 1, "n_heads": 2, "d_model": 16, "d_ff": 32}
    model = GPT(ModelConfig(vocab_size=vocab_size, norm="pre", positions="learned", **shape))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return model, jax.tree.map(lambda p: p * 8 if p.ndim > 1 else p, params)


def generate_naively(model, params, tokenizer, prompt, sampling, *, max_new_tokens, seed, sample=0):
    """The tokens of one sample, by reading the whole window again for each: what the fast way must equal."""
    context_length, end_of_text = model.config.context_length, tokenizer.end_of_text
    window, _ = encode_prompt(tokenizer, prompt, context_length)
    (key,) = generation._sample_keys(seed, [sample])
    story: list[int] = []
    for step in range(max_new_tokens):
        window = fit_window(window, context_length)
        padded = jnp.array([window + [end_of_text] * (context_length - len(window))])
        step_key = jax.random.fold_in(key, step)
        token = _next_token(model, params, padded, len(window), step_key, as_scalars(sampling), end_of_text)
        if token == end_of_text:
            break
        story.append(int(token))
        window = [*window, story[-1]]
    return story


@partial(jax.jit, static_argnames="model")
def _next_token(model, params, padded, length, key, settings, end_of_text):
    """After the first `length` tokens of `padded`; attention is causal, so the others have no part in it."""
    logits = model.apply({"params": params}, padded)[:, length - 1]
    seen = mark_seen(jnp.zeros(logits.shape, bool), padded, end_of_text)
    return next_token(key[None], logits, seen, **settings)[0]


@pytest.fixture(scope="module")
def small():
    return build(257)


@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(1.0), Sampling(0.7, top_k=20, top_p=0.8, repetition_penalty=1.3)], ids=str
)
def test_generate_equals_the_naive_way(small, sampling):
    """Token by token, far past the context, prompts of all lengths in one batch. Guards: a window re-read too
    early, late or cut elsewhere, a key used twice, tokens read beyond the end of a prompt that stay in the cache."""
    model, params = small
    options = {"max_new_tokens": 3 * CONTEXT, "seed": 3}
    samples = generate(model, params, BYTES, PROMPTS, sampling, num_samples=2, **options)
    for row, sample in enumerate(samples):
        prompt, number = PROMPTS[row // 2], row % 2
        expected = generate_naively(model, params, BYTES, prompt, sampling, sample=number, **options)
        assert (sample.prompt, sample.tokens) == (prompt, expected)


def test_a_story_ends_at_end_of_text(small):
    """Each row for itself: the others go on. Guards: text after the end, and a batch that stops with its first row."""
    samples = generate(*small, BYTES, [""], Sampling(1.0), max_new_tokens=120, seed=0, num_samples=12)
    assert {sample.finished for sample in samples} == {True, False}
    for sample in samples:
        assert 256 not in sample.tokens
        assert sample.finished == (len(sample.tokens) < 120)
        assert sample.text == BYTES.decode(sample.tokens)


def test_decoding_ends_with_the_longest_story(small):
    """Guards: rows that forget that they have ended, and keep the device busy."""
    keys = jax.random.split(jax.random.key(0), 2)
    pieces = list(decoding.decode(*small, [[256], [256]], keys, Sampling(1.0), 256, 10_000, stride=50))
    tokens = np.concatenate(pieces, axis=1)
    ends = (tokens == 256).argmax(axis=1)
    assert tokens[0, ends[0]] == tokens[1, ends[1]] == 256
    assert ends[0] != ends[1]
    assert tokens.shape[1] == ends.max() + 1


def test_a_sample_does_not_depend_on_its_company(small, monkeypatch):
    """Nor on num_samples, nor on how many rows are decoded together. Guards: keys folded from the row."""
    options = {"sampling": Sampling(1.0), "max_new_tokens": 30, "seed": 5}
    together = generate(*small, BYTES, PROMPTS, num_samples=2, **options)
    alone = [sample for prompt in PROMPTS for sample in generate(*small, BYTES, [prompt], **options)]
    assert together[::2] == alone
    monkeypatch.setattr(generation, "_MAX_ROWS", 2)
    assert generate(*small, BYTES, PROMPTS, num_samples=2, **options) == together


def test_seed_decides(small):
    """The same seed gives the same text, another seed and another sample another text."""

    def texts(seed):
        samples = generate(*small, BYTES, ["a"], Sampling(1.0), max_new_tokens=20, seed=seed, num_samples=2)
        return [sample.text for sample in samples]

    assert texts(1) == texts(1)
    assert len({*texts(1), *texts(2)}) == 4


def test_stream_says_what_generate_says(small):
    """For texts that end and texts that are cut, past the context. Guards: tokens lost between two fetches."""
    for seed in range(3):
        options = {"sampling": Sampling(1.0), "max_new_tokens": 41, "seed": seed}
        whole = generate(*small, BYTES, ["abc"], **options)[0].text
        pieces = list(stream(*small, BYTES, "abc", **options))
        assert "".join(pieces) == whole
        assert len(pieces) > 1


def test_stream_never_cuts_a_character(small, monkeypatch):
    """Characters of 1 to 4 bytes that arrive byte by byte, the last one torn off by the end."""
    text = "aé€😀"
    tokens = BYTES.encode(text + "é")[:-1]
    pieces = [np.array([[token]]) for token in [*tokens, BYTES.end_of_text]]
    monkeypatch.setattr(generation, "decode", lambda *arguments, stride: iter(pieces))
    assert list(stream(*small, BYTES, "", GREEDY, max_new_tokens=9, seed=0)) == [*text, "\N{REPLACEMENT CHARACTER}"]


def test_settings_compile_nothing_anew(small):
    """Training writes samples at each evaluation. Guards: settings, seeds or lengths as static arguments."""

    def programs():
        return decoding._write._cache_size(), decoding._read._cache_size()

    def run(sampling, max_new_tokens, seed, prompts=("a", "bcd")):
        generate(*small, BYTES, prompts, sampling, max_new_tokens=max_new_tokens, seed=seed)

    run(Sampling(1.0), 5, 0)
    run(Sampling(1.0, top_k=3, top_p=0.9, repetition_penalty=1.1), 5, 0)
    before = programs()
    run(Sampling(0.5), 7, 1, prompts=("e", "fgi"))
    run(Sampling(0.1, top_k=5, top_p=0.5, repetition_penalty=2.0), 8, 2)
    assert programs() == before


@pytest.fixture
def on_an_accelerator(monkeypatch):
    """Decode as the program for an accelerator does: two rows at least, and always a whole stride of tokens."""
    programs = (decoding._write, decoding._read)
    [program.clear_cache() for program in programs]
    monkeypatch.setattr(decoding, "least_rows", lambda platform: 2)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, default, **_: default(*arguments))
    yield
    [program.clear_cache() for program in programs]


def test_accelerators_write_the_same(small, on_an_accelerator, monkeypatch):
    """Alone and together, texts that end, are cut, and pass the context in the middle of a stride. Guards: tokens from
    beyond any of the three, and a row that is only there for company in the answer."""
    monkeypatch.setattr(generation, "_STRIDE", 7)
    sampling, options = Sampling(1.0, top_k=100, top_p=0.99), {"max_new_tokens": 5 * CONTEXT, "seed": 5}
    samples = generate(*small, BYTES, ["abc"], sampling, num_samples=4, **options)
    assert [sample.finished for sample in samples] == [True, True, False, False]
    for number, sample in enumerate(samples):
        assert sample.tokens == generate_naively(*small, BYTES, "abc", sampling, sample=number, **options)
    assert generate(*small, BYTES, ["abc"], sampling, **options) == samples[:1]
    assert decoding._write._cache_size() == 2
    test_decoding_ends_with_the_longest_story(small)


def test_weights_are_cast_once(small):
    """To the dtype of their products, before the first token, with the same logits. Guards: a cast of all weights for
    each token, LayerNorm or embeddings rounded too, and copies where there is nothing to cast."""
    model, params = small
    for config in (model.config, replace(model.config, norm="post", positions="sinusoidal", tie_embeddings=False)):
        half = GPT(config, jnp.bfloat16)
        params = half.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
        prepared, cast = decoding.prepare(half, params)
        cache = empty_cache(config, 2, CONTEXT, jnp.bfloat16)
        read = (jnp.array([[1, 2, 3], [4, 5, 6]]), cache, jnp.int32(0), jnp.array([0, 1]))
        logits = [
            jax.jit(partial(m.apply, method="decode"))({"params": p}, *read)[0]
            for m, p in ((half, params), (prepared, cast))
        ]
        np.testing.assert_array_equal(*logits)
        dtypes = jax.tree.map(lambda p: p.dtype, cast["blocks_0"])
        assert set(dtypes["attention"].values()) | set(dtypes["feed_forward"].values()) == {jnp.dtype("bfloat16")}
        assert set(dtypes["attention_norm"].values()) == {cast["token_embedding"].dtype} == {jnp.dtype("float32")}
        assert cast["head_weight"].dtype == jnp.bfloat16
    same = decoding.prepare(model, params)[1]
    assert all(
        a is b for a, b in zip(jax.tree.leaves(same["blocks_0"]), jax.tree.leaves(params["blocks_0"]), strict=True)
    )


def test_the_cache_is_updated_in_place(small):
    """Guards: a copy of the cache for each token or each fetch. (For a single row XLA's CPU compiler does copy.)"""
    model, params = small
    keys, settings = jax.random.split(jax.random.key(0), 2), as_scalars(GREEDY)
    state = decoding._read_windows(model, params, [[256, 1], [256]], np.zeros(2, bool), keys, settings, 0, 256)
    program = decoding._write.lower(model, params, state, keys, settings, 4, 256, 4).compile().as_text()
    shape = "f32[" + ",".join(map(str, state.cache[0][0].shape)) + "]"
    assert shape in program
    assert not [line for line in program.splitlines() if f"= {shape}" in line and " copy(" in line]
    after, _ = decoding._write(model, params, state, keys, settings, 4, 256, 4)
    assert all(array.is_deleted() for layer in state.cache for array in layer)
    assert int(after.step) == 5


def test_a_full_window_is_halved():
    """Only when it does not fit, and never to nothing."""
    assert decoding.fit_window([*range(12)], 12) == [*range(12)]
    assert decoding.fit_window([*range(13)], 12) == [7, 8, 9, 10, 11, 12]
    assert decoding.fit_window([1, 2], 1) == [2]


def test_a_long_prompt_keeps_its_end(small):
    """And says how much was dropped, which is nothing as long as only end-of-text had to go."""
    long = "x" * 7 + "abcdefghijkl"
    assert [encode_prompt(BYTES, prompt, CONTEXT)[1] for prompt in (long, long[-CONTEXT:])] == [7, 0]
    samples = generate(*small, BYTES, [long, long[-CONTEXT:]], GREEDY, max_new_tokens=5, seed=0)
    assert samples[0].tokens == samples[1].tokens


def test_bfloat16_parameters_are_welcome(small):
    """Weights may be stored in another dtype than the arithmetic's."""
    model, params = small
    half = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    (sample,) = generate(model, half, BYTES, ["a"], GREEDY, max_new_tokens=5, seed=0)
    assert len(sample.tokens) == 5


@pytest.mark.parametrize("changes", [{"max_new_tokens": 0}, {"num_samples": 0}, {"seed": -1}, {"seed": 2**31}], ids=str)
def test_numbers_out_of_range_are_refused(small, changes):
    with pytest.raises(UsageError, match=f"{next(iter(changes))} {next(iter(changes.values()))}"):
        generate(*small, BYTES, [""], GREEDY, **{"max_new_tokens": 1, "seed": 0} | changes)


def test_another_models_tokenizer_is_refused():
    """Its tokens would be read as others', or lie outside the vocabulary."""
    with pytest.raises(UserError, match="257 tokens and the model 300"):
        generate(*build(300), BYTES, [""], GREEDY, max_new_tokens=1, seed=0)
