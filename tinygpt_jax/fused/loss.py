"""The output head and its cross-entropy in one, in pieces that come and go."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from tinygpt_jax.fused.products import product_over_rows


def head_cross_entropy(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None = None,
    *,
    chunks: int = 1,
    vocab_multiple: int = 1,
) -> Float[Array, ""]:
    """`functional.head_cross_entropy` without keeping the logits, which are the largest array by far.

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
    padding = jnp.finfo(jnp.float32).min
    logits = jnp.where(_vocabulary_index(logits) < vocab_size, logits.astype(jnp.float32), padding)
    largest, log_total = _log_sum_exp(logits)
    # Shifted before anything is added up: large logits keep their digits.
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1) - largest
    return (log_total - target_logits)[..., 0], jnp.exp(logits - largest - log_total)


def _log_sum_exp(x):
    """The largest of the last axis, and ln(sum(exp(x - largest))); both float32 and with that axis of length 1."""

    def in_two_passes(x):
        largest = jnp.max(x, axis=-1, keepdims=True)
        return largest, jnp.log(jnp.sum(jnp.exp(x - largest), axis=-1, keepdims=True))

    def in_one_pass(x):
        """The largest so far and the sum relative to it, merged in any order: a GPU reads the logits once."""

        def merge(a, b):
            largest = jnp.maximum(a[0], b[0])
            return largest, a[1] * jnp.exp(a[0] - largest) + b[1] * jnp.exp(b[0] - largest)

        start = (jnp.finfo(jnp.float32).min, jnp.float32(0))
        largest, total = jax.lax.reduce((x, jnp.ones_like(x)), start, merge, (x.ndim - 1,))
        return largest[..., None], jnp.log(total)[..., None]

    return jax.lax.platform_dependent(x, cpu=in_two_passes, default=in_one_pass)


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
