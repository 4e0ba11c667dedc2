"""The modules with parameters of their own: against the reference, one by one and whole, in every variant."""

import itertools
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.presets import PRESETS
from tests import reference
from tinygpt_jax import functional as F
from tinygpt_jax import fused
from tinygpt_jax.config import ModelConfig
from tinygpt_jax.model import GPT, Block, FeedForward, LayerNorm, SelfAttention, abstract_params, empty_cache

VOCAB, CONTEXT, D_MODEL = 31, 9, 12
POSITIONS = jnp.arange(5)[None, :]


def tiny(**changes):
    """A model small enough for the reference's loops: head_dim 4 differs from 3 heads and from the context."""
    shape = dict(vocab_size=VOCAB, context_length=CONTEXT, n_layers=2, n_heads=3, d_model=D_MODEL, d_ff=20)
    return ModelConfig(**{**shape, "dropout": 0.0, **changes})


OPTIONS = {
    "-".join((norm, activation, positions, "tied" if tied else "untied")): tiny(
        norm=norm, activation=activation, positions=positions, tie_embeddings=tied
    )
    for norm, activation, positions, tied in itertools.product(
        ("post", "pre"), ("relu", "gelu"), ("sinusoidal", "learned", "rotary"), (True, False)
    )
}
every_option = pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)
# For what depends on neither the activation nor the head.
WIRINGS = {name: config for name, config in OPTIONS.items() if config.activation == "relu" and config.tie_embeddings}
every_wiring = pytest.mark.parametrize("config", WIRINGS.values(), ids=WIRINGS)


@cache
def forward(config, arithmetic=F):
    """The compiled model, once for all tests that use it."""
    return jax.jit(GPT(config, arithmetic=arithmetic).apply)


def scrambled(module, *arguments):
    """Parameters of the module away from their initial values, so that no bias is 0 and no scale 1."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *arguments)["params"])
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * generator.normal(size=leaf.shape), jnp.float32), shapes)


@cache
def gpt_params(config):
    """`scrambled` parameters of a whole model."""
    return scrambled(GPT(config), jnp.zeros((1, 1), int))


def exact(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def random_tokens(batch, length, vocab=VOCAB):
    return jnp.asarray(np.random.default_rng(1).integers(0, vocab, (batch, length)))


def assert_close(actual, expected, tolerance=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max()))


def reference_logits(config, params, tokens):
    options = dict(norm=config.norm, activation=config.activation, positions=config.positions)
    sizes = dict(n_layers=config.n_layers, n_heads=config.n_heads)
    return np.array([reference.gpt(exact(params), row, **sizes, **options) for row in np.asarray(tokens)])


@pytest.mark.parametrize("arithmetic", [F, fused], ids=["functional", "fused"])
@every_option
def test_whole_model(config, arithmetic):
    """Logits over a full context, two rows at once."""
    tokens = random_tokens(2, CONTEXT)
    params = gpt_params(config)
    logits = forward(config, arithmetic)({"params": params}, tokens)
    assert logits.dtype == jnp.float32
    assert_close(logits, reference_logits(config, params, tokens))


def test_whole_model_on_one_token():
    tokens = random_tokens(1, 1)
    params = gpt_params(tiny())
    assert_close(forward(tiny())({"params": params}, tokens), reference_logits(tiny(), params, tokens))


def test_layer_norm_alone(draw):
    x, module = draw(2, 5, D_MODEL), LayerNorm(tiny())
    params = scrambled(module, jnp.asarray(x))
    assert_close(module.apply({"params": params}, jnp.asarray(x)), reference.layer_norm(x, **exact(params)))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_feed_forward_alone(activation, draw):
    x, module = draw(2, 5, D_MODEL), FeedForward(tiny(activation=activation))
    params = scrambled(module, jnp.asarray(x))
    actual = module.apply({"params": params}, jnp.asarray(x))
    assert_close(actual, reference.feed_forward(x, **exact(params), activation=activation))


@pytest.mark.parametrize("n_heads", [1, 3, D_MODEL])
def test_self_attention_alone(n_heads, draw):
    x, module = draw(2, 5, D_MODEL), SelfAttention(tiny(n_heads=n_heads))
    params = scrambled(module, jnp.asarray(x), POSITIONS)
    actual, cache = module.apply({"params": params}, jnp.asarray(x), POSITIONS)
    assert cache is None
    assert_close(actual, [reference.multi_head_attention(exact(params), row, n_heads) for row in x])


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_block_alone(norm, draw):
    x, module = draw(2, 5, D_MODEL), Block(tiny(norm=norm))
    params = scrambled(module, jnp.asarray(x), POSITIONS)
    actual, _ = module.apply({"params": params}, jnp.asarray(x), POSITIONS)
    block = {"post": reference.post_norm_block, "pre": reference.pre_norm_block}[norm]
    assert_close(actual, [block(exact(params), row, 3, "relu") for row in x])


@every_option
def test_no_token_sees_a_later_one(config):
    """Another token at position 4 changes the logits from there on, and not a bit before or in the other row."""
    tokens = random_tokens(2, CONTEXT)
    params = gpt_params(config)
    before = forward(config)({"params": params}, tokens)
    after = forward(config)({"params": params}, tokens.at[0, 4].set((tokens[0, 4] + 1) % VOCAB))
    changed = np.any(np.asarray(before != after), axis=-1)
    np.testing.assert_array_equal(changed, [[False] * 4 + [True] * (CONTEXT - 4), [False] * CONTEXT])


GPT2_SMALL = ModelConfig(
    vocab_size=50_257,
    context_length=1024,
    n_layers=12,
    n_heads=12,
    d_model=768,
    d_ff=3072,
    activation="gelu",
    norm="pre",
    positions="learned",
    tie_embeddings=True,
)


def count(config):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(config)))


def test_parameter_count():
    """Pre-LN, GELU, learned positions and a tied head are GPT-2 small, to the parameter."""
    assert count(GPT2_SMALL) == 124_439_808
    # The reference system: no position table (1024 x 768) and no final norm (2 x 768).
    assert count(ModelConfig()) == 124_439_808 - 1024 * 768 - 2 * 768
    assert count(ModelConfig(tie_embeddings=False)) - count(ModelConfig()) == 50_257 * 768


def test_tied_means_one_array():
    """No second leaf holds the head, and the table's gradient is the sum of those of its two uses."""
    tokens = random_tokens(2, 5)
    tied, untied = GPT(tiny(n_layers=1)), GPT(tiny(n_layers=1, tie_embeddings=False))
    params = gpt_params(tied.config)
    assert "head_weight" not in params
    copied = {**params, "head_weight": params["token_embedding"]}

    def gradient(model, params):
        loss = jax.grad(lambda p: jnp.mean(model.apply({"params": p}, tokens) ** 2))
        return jax.jit(loss)(params)

    once, twice = gradient(tied, params), gradient(untied, copied)
    assert jnp.abs(twice["token_embedding"]).max() > 0 and jnp.abs(twice["head_weight"]).max() > 0
    assert_close(once["token_embedding"], twice["token_embedding"] + twice["head_weight"])


@pytest.mark.parametrize("preset", PRESETS)
def test_loss_at_step_zero(preset):
    """A fresh model of every preset guesses uniformly: ln V on random tokens, each predicting the next.

    At full size it can fail by more than width: a tied head may find the input token in its own hidden state.
    """
    config = PRESETS[preset].config.model
    tokens = random_tokens(1, 33, config.vocab_size)
    logits, _ = jax.jit(GPT(config).init_with_output)(jax.random.key(0), tokens[:, :-1])
    assert float(F.cross_entropy(logits, tokens[:, 1:])) == pytest.approx(math.log(config.vocab_size), abs=0.3)


def test_initial_values():
    """Weights of variance 1 / inputs, less where a block writes to the residual stream; tables 0.02 and 0.01."""
    config = tiny(norm="pre", positions="learned", tie_embeddings=False, d_model=96, d_ff=384, vocab_size=500)
    params = jax.jit(GPT(config).init)(jax.random.key(0), random_tokens(1, 4))["params"]
    expected = {
        "token_embedding": 0.02,
        "head_weight": 0.02,
        "position_embedding": 0.01,
        "qkv_weight": 96**-0.5,
        "weight_in": 96**-0.5,
        "out_weight": (96 * 2 * config.n_layers) ** -0.5,
        "weight_out": (384 * 2 * config.n_layers) ** -0.5,
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        assert leaf.dtype == jnp.float32
        if name in expected:
            five_sigma = 5 / math.sqrt(2 * leaf.size)
            assert float(leaf.std()) == pytest.approx(expected[name], rel=five_sigma), path
        else:
            np.testing.assert_array_equal(leaf, 1 if name == "scale" else 0, err_msg=str(path))


@every_wiring
def test_bfloat16_is_close_to_float32(config):
    """Activations in bfloat16 cost a few roundings of 2^-8; parameters and logits stay float32."""
    tokens = random_tokens(2, CONTEXT)
    narrow = GPT(config, compute_dtype=jnp.bfloat16)
    params = gpt_params(config)
    logits = jax.jit(narrow.apply)({"params": params}, tokens)
    assert logits.dtype == jnp.float32
    assert jax.eval_shape(lambda: narrow.apply({"params": params}, tokens, method="hidden")).dtype == jnp.bfloat16
    assert_close(logits, np.asarray(forward(config)({"params": params}, tokens)), 0.05)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_loss_is_the_cross_entropy_of_the_logits(norm, draw):
    """In either arithmetic, and cut in pieces: value and gradients, mask included."""
    model, tokens, targets = GPT(tiny(norm=norm, n_layers=1)), random_tokens(2, 6), random_tokens(2, 6)[::-1]
    mask = jnp.asarray(draw(2, 6) > -0.5)
    params, batch = gpt_params(model.config), (tokens, targets, mask)

    def plain(params):
        return F.cross_entropy(model.apply({"params": params}, tokens), targets, mask)

    expected, gradients = jax.jit(jax.value_and_grad(plain))(params)
    for arithmetic, arrangement in ((F, {}), (fused, {}), (fused, {"chunks": 2, "vocab_multiple": 16})):
        loss = partial(model.clone(arithmetic=arithmetic).apply, method="loss", **arrangement)
        actual, actual_gradients = jax.jit(jax.value_and_grad(lambda p, loss=loss: loss({"params": p}, *batch)))(params)
        assert float(actual) == pytest.approx(float(expected), rel=1e-6)
        jax.tree.map(assert_close, actual_gradients, gradients)


def test_the_plain_model_has_every_derivative():
    """`jax.jvp`, `jax.hessian` and `jax.vmap` over parameters, which a gradient by hand would forbid."""
    config = tiny(n_layers=1, norm="pre")
    model, params, tokens = GPT(config), gpt_params(config), random_tokens(1, 5)
    mask = jnp.ones(tokens.shape, bool)

    @jax.jit
    def loss(params):
        return model.apply({"params": params}, tokens, tokens[:, ::-1], mask, method="loss")

    generator = np.random.default_rng(2)
    direction = jax.tree.map(lambda p: jnp.asarray(generator.normal(size=p.shape), jnp.float32), params)
    value, slope = jax.jit(lambda p, d: jax.jvp(loss, (p,), (d,)))(params, direction)
    by_gradient = sum(map(jnp.vdot, *map(jax.tree.leaves, (jax.jit(jax.grad(loss))(params), direction))))
    assert float(value) == pytest.approx(float(loss(params)), rel=1e-6)
    assert float(slope) == pytest.approx(float(by_gradient), rel=1e-4)

    def loss_of_bias(bias):
        return loss({**params, "final_norm": {**params["final_norm"], "bias": bias}})

    bias = params["final_norm"]["bias"]
    hessian = jax.jit(jax.hessian(loss_of_bias))(bias)
    step = 1e-2 * jnp.eye(D_MODEL)[3]
    gradient = jax.jit(jax.grad(loss_of_bias))
    row = (gradient(bias + step) - gradient(bias - step)) / 2e-2
    assert_close(hessian[3], row, 2e-3)

    two = jax.tree.map(lambda p, d: jnp.stack([p, p + 0.1 * d]), params, direction)
    losses = jax.jit(jax.vmap(loss))(two)
    for i in range(2):
        alone = loss(jax.tree.map(lambda p, i=i: p[i], two))
        assert float(losses[i]) == pytest.approx(float(alone), rel=1e-5)


def test_dropout_needs_a_key_and_follows_it():
    """Without a key there is none; the same key gives the same, another key something else."""
    model, tokens = GPT(tiny(dropout=0.5)), random_tokens(2, 5)
    variables = {"params": gpt_params(model.config)}
    plain, first, again, other = (
        np.asarray(forward(model.config)(variables, tokens, key))
        for key in (None, jax.random.key(0), jax.random.key(0), jax.random.key(1))
    )
    assert_close(plain, reference_logits(model.config, variables["params"], tokens))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != plain) and np.any(first != other)
    undropped = forward(tiny(dropout=0.0))(variables, tokens, jax.random.key(0))
    assert_close(undropped, plain)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_dropout_stands_after_the_embedding_and_each_sub_layer(norm, monkeypatch):
    """Five places in two blocks, each with the configured rate and a key of its own."""
    calls = []

    def spy(key, x, rate):
        calls.append((key, rate))
        return x

    @jax.jit
    def logits_and_keys(params):
        logits = model.apply({"params": params}, tokens, jax.random.key(0))
        return logits, [jax.random.key_data(key) for key, _ in calls]

    model, tokens = GPT(tiny(dropout=0.25, norm=norm)), random_tokens(1, 4)
    monkeypatch.setattr(F, "dropout", spy)
    logits, keys = logits_and_keys(gpt_params(model.config))
    assert [rate for _, rate in calls] == [0.25] * 5
    assert len({tuple(key.tolist()) for key in keys}) == 5
    assert_close(logits, reference_logits(model.config, gpt_params(model.config), tokens))


def test_remat_recomputes_and_changes_nothing():
    """The option reaches the program (its trace says so), and the gradients stay the same."""
    tokens = random_tokens(2, 5)
    config = tiny(dropout=0.5, n_layers=1)
    params = gpt_params(config)

    def gradient(model):
        def loss(params):
            return jnp.mean(model.apply({"params": params}, tokens, jax.random.key(0)) ** 2)

        return jax.jit(jax.grad(loss)).trace(params)

    plain, remat = gradient(GPT(config)), gradient(GPT(config, remat=True))
    assert "remat" not in str(plain.jaxpr) and "remat" in str(remat.jaxpr)
    jax.tree.map(assert_close, remat.lower().compile()(params), plain.lower().compile()(params))


@every_wiring
def test_decoding_equals_the_full_forward(config):
    """Tokens read through the cache, three at once and then one by one, give the logits of reading all at once.

    The second row is shorter: it begins at column 2, and the two columns before must not be seen.
    """
    tokens = np.array(random_tokens(2, CONTEXT))
    params = gpt_params(config)
    whole = reference_logits(config, params, tokens[:1])[0]
    short = reference_logits(config, params, tokens[1:, 2:])[0]
    decode = jax.jit(partial(GPT(config).apply, method="decode"))
    kept = empty_cache(config, 2, CONTEXT, jnp.float32)
    for first, last in itertools.pairwise([0, *range(3, CONTEXT + 1)]):
        piece = jnp.asarray(tokens[:, first:last])
        logits, kept = decode({"params": params}, piece, kept, jnp.array(first), jnp.array([0, 2]))
        assert_close(logits, np.stack([whole[last - 1], short[last - 3]]))


def test_too_many_tokens_are_refused():
    """Positions past the context would read the last row of the table again and again."""
    model = GPT(tiny())
    with pytest.raises(ValueError, match="10 tokens do not fit the context of 9"):
        model.apply({"params": gpt_params(model.config)}, random_tokens(1, 10))
