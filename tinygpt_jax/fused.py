"""What `functional` defines, arranged to need less memory, with hand-written gradients.

Each function gives the value and the gradients of its plain counterpart, and a test holds it to that.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tinygpt_jax.functional import product_over_rows


def head_cross_entropy(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None = None,
    *,
    chunks: int = 1,
    vocab_multiple: int = 1,
) -> Float[Array, ""]:
    """`cross_entropy(hidden @ head.T, targets, mask)` without keeping the logits, which are the largest array by far.

    The gradient of a mean is known as soon as the logits are: (softmax - one-hot) / count. So the forward pass
    already turns each piece of logits into gradients for `hidden` and `head` and lets the piece go.

    Args:
        hidden: the last hidden states, in the dtype of the products.
        head: a row for each token.
        chunks: how many pieces the time axis is cut in; must divide t. More pieces, less memory.
        vocab_multiple: pad the vocabulary to a multiple of this for the product (128 suits tensor cores); the
            padding has no probability.
    """
    if mask is None:
        mask = jnp.ones(targets.shape, bool)
    padding = -head.shape[0] % vocab_multiple
    head = jnp.pad(head, ((0, padding), (0, 0)))
    weights = mask / jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
    vocab_size = head.shape[0] - padding
    return _head_loss(hidden, head, targets, weights, chunks, vocab_size)  # pyright: ignore[reportCallIssue]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _head_loss(hidden, head, targets, weights, chunks, vocab_size):
    """Sum of weights x token losses. `head` may have more rows than the vocabulary."""
    head = head.astype(hidden.dtype)

    def chunk_loss(chunk):
        hidden_chunk, target_chunk, weight_chunk = chunk
        losses, _ = _chunk_losses(hidden_chunk, target_chunk, head, vocab_size)
        return jnp.sum(losses * weight_chunk)

    return jnp.sum(jax.lax.map(chunk_loss, _cut_time((hidden, targets, weights), chunks)))


def _head_loss_forward(hidden, head, targets, weights, chunks, vocab_size):
    head_cast = head.astype(hidden.dtype)

    def chunk_step(head_gradient, chunk):
        hidden_chunk, target_chunk, weight_chunk = chunk
        losses, probabilities = _chunk_losses(hidden_chunk, target_chunk, head_cast, vocab_size)
        is_target = _vocabulary_index(probabilities) == target_chunk[..., None]
        logits_gradient = ((probabilities - is_target) * weight_chunk[..., None]).astype(hidden.dtype)
        hidden_gradient = jnp.einsum("btv,vd->btd", logits_gradient, head_cast)
        logits_rows, hidden_rows = (x.reshape(-1, x.shape[-1]) for x in (logits_gradient, hidden_chunk))
        head_gradient += product_over_rows(logits_rows, hidden_rows, jnp.float32)
        return head_gradient, (jnp.sum(losses * weight_chunk), hidden_gradient)

    start = jnp.zeros(head.shape, jnp.float32)
    pieces = _cut_time((hidden, targets, weights), chunks)
    if chunks == 1:  # the same step without a loop around it, which XLA could not look through
        head_gradient, (loss, hidden_gradient) = chunk_step(start, jax.tree.map(lambda x: x[0], pieces))
        return loss, (hidden_gradient, head_gradient)
    head_gradient, (losses, hidden_gradients) = jax.lax.scan(chunk_step, start, pieces)
    hidden_gradient = jnp.moveaxis(hidden_gradients, 0, 1).reshape(hidden.shape)
    return jnp.sum(losses), (hidden_gradient, head_gradient)


def _head_loss_backward(chunks, vocab_size, residuals, gradient):
    hidden_gradient, head_gradient = residuals
    return (hidden_gradient * gradient).astype(hidden_gradient.dtype), head_gradient * gradient, None, None


_head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def _chunk_losses(hidden, targets, head, vocab_size):
    """Token losses `[b, t]` and probabilities `[b, t, rows of head]`, both float32, of one piece."""
    # Stored in the dtype of the products: half the memory in bfloat16, and the float32 arithmetic below is fused.
    logits = jnp.einsum("btd,vd->btv", hidden, head)
    logits = jnp.where(_vocabulary_index(logits) < vocab_size, logits.astype(jnp.float32), -jnp.inf)
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    log_total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    return (log_total - target_logits)[..., 0], jnp.exp(logits - log_total)


def _cut_time(arrays, chunks):
    """Each `[b, t, ...]` as `[chunks, b, t / chunks, ...]`. Cutting time leaves a batch sharded over devices whole."""

    def cut(x):
        batch, length, *rest = x.shape
        if length % chunks:
            raise ValueError(f"chunks {chunks} must divide the {length} positions")
        return jnp.moveaxis(x.reshape(batch, chunks, length // chunks, *rest), 1, 0)

    return jax.tree.map(cut, arrays)


def _vocabulary_index(logits):
    return jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def causal_attention(
    query: Float[Array, "*heads t e"],
    key: Float[Array, "*heads t e"],
    value: Float[Array, "*heads t e"],
    block: int = 128,
) -> Float[Array, "*heads t e"]:
    """`attention(query, key, value, causal_mask(t))` in memory that grows with t, not with its square.

    Blocks of queries meet blocks of keys, one pair at a time and only where a query may look; a running maximum and
    sum give the softmax (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention, algorithms 1 and 4).

    Args:
        query, key, value: any leading axes (batch, heads), then positions, then the features of a head.
        block: positions in a block.
    """
    return _blockwise_forward(query, key, value, block)[0]


def _blockwise_forward(query, key, value, block):
    length, head_dim = query.shape[-2:]
    q, k, v = (_in_blocks(x, block) for x in (query, key, value))  # [blocks, *heads, block, e]
    scale = head_dim**-0.5

    def meet(carry, pair):
        largest, total, mixed = carry
        i, j = pair
        scores = _scores(q[i], k[j], i, j, scale)
        new_largest = jnp.maximum(largest[i], jnp.max(scores, axis=-1))
        exponents = jnp.exp(scores - new_largest[..., None])
        shrink = jnp.exp(largest[i] - new_largest)
        weighted = jnp.einsum("...qk,...ke->...qe", exponents.astype(value.dtype), v[j]).astype(jnp.float32)
        return (
            largest.at[i].set(new_largest),
            total.at[i].set(total[i] * shrink + jnp.sum(exponents, axis=-1)),
            mixed.at[i].set(mixed[i] * shrink[..., None] + weighted),
        ), None

    start = (
        jnp.full(q.shape[:-1], jnp.finfo(jnp.float32).min),
        jnp.zeros(q.shape[:-1], jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    (largest, total, mixed), _ = jax.lax.scan(meet, start, _pairs(len(q)))
    out = (mixed / total[..., None]).astype(query.dtype)
    return _in_a_row(out, length), (query, key, value, out, largest + jnp.log(total))


def _blockwise_backward(block, residuals, gradient):
    query, key, value, out, log_total = residuals
    length, head_dim = query.shape[-2:]
    q, k, v, g = (_in_blocks(x, block) for x in (query, key, value, gradient))
    scale = head_dim**-0.5
    # Each query's sum of weight x gradient of weight, which the softmax's derivative subtracts.
    shared = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def meet(carry, pair):
        q_gradient, k_gradient, v_gradient = carry
        i, j = pair
        weights = jnp.exp(_scores(q[i], k[j], i, j, scale) - log_total[i][..., None])
        weights_gradient = jnp.einsum("...qe,...ke->...qk", g[i], v[j], preferred_element_type=jnp.float32)
        scores_gradient = (weights * (weights_gradient - shared[i][..., None]) * scale).astype(query.dtype)
        return (
            q_gradient.at[i].add(jnp.einsum("...qk,...ke->...qe", scores_gradient, k[j])),
            k_gradient.at[j].add(jnp.einsum("...qk,...qe->...ke", scores_gradient, q[i])),
            v_gradient.at[j].add(jnp.einsum("...qk,...qe->...ke", weights.astype(value.dtype), g[i])),
        ), None

    start = tuple(jnp.zeros(q.shape, jnp.float32) for _ in range(3))
    gradients, _ = jax.lax.scan(meet, start, _pairs(len(q)))
    return tuple(_in_a_row(x, length).astype(query.dtype) for x in gradients)


causal_attention.defvjp(_blockwise_forward, _blockwise_backward)


def _scores(query, key, i, j, scale):
    """Scores of query block i and key block j, where a query may look; float32."""
    scores = jnp.einsum("...qe,...ke->...qk", query, key, preferred_element_type=jnp.float32) * scale
    block = scores.shape[-1]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 2 + axis) for axis in (0, 1))
    return jnp.where(j * block + column <= i * block + row, scores, jnp.finfo(jnp.float32).min)


def _pairs(blocks):
    """(query block, key block) for all pairs in which some query may look at some key."""
    pairs = [(i, j) for i in range(blocks) for j in range(i + 1)]
    return tuple(jnp.array(indices) for indices in zip(*pairs, strict=True))


def _in_blocks(x, block):
    """`[*heads, t, e]` as `[blocks, *heads, block, e]`; what is added at the end no earlier query looks at."""
    *heads, length, features = x.shape
    x = jnp.pad(x, [(0, 0)] * len(heads) + [(0, -length % block), (0, 0)])
    return jnp.moveaxis(x.reshape(*heads, -1, block, features), -3, 0)


def _in_a_row(blocks, length):
    """The inverse of `_in_blocks`."""
    x = jnp.moveaxis(blocks, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])[..., :length, :]
