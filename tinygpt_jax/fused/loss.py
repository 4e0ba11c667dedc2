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
    return arranged(hidden, head, targets, mask, chunks, vocab_multiple, losses_and_gradient)


def arranged(hidden, head, targets, mask, chunks, vocab_multiple, losses_and_gradient) -> Float[Array, ""]:
    """`head_cross_entropy`, given the function of logits that it rests on; see `losses_and_gradient`."""
    if mask is None:
        mask = jnp.ones(targets.shape, bool)
    padding = -head.shape[0] % vocab_multiple
    head = jnp.pad(head, ((0, padding), (0, 0)))
    weights = mask / jnp.maximum(jnp.sum(mask), 1).astype(jnp.float32)
    vocab_size = head.shape[0] - padding
    return _head_loss(hidden, head, targets, weights, chunks, vocab_size, losses_and_gradient)  # pyright: ignore


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _head_loss(hidden, head, targets, weights, chunks, vocab_size, _):
    """Sum of weights x token losses. `head` may have more rows than the vocabulary.

    This is the loss without a gradient, and takes XLA's; with one, `_head_loss_forward` computes both.
    """
    head = head.astype(hidden.dtype)

    def chunk_loss(chunk):
        hidden_chunk, target_chunk, weight_chunk = chunk
        losses, _ = losses_and_gradient(_logits(hidden_chunk, head), target_chunk, weight_chunk, vocab_size)
        return jnp.sum(losses * weight_chunk)

    return jnp.sum(jax.lax.map(chunk_loss, _cut_time((hidden, targets, weights), chunks)))


def _head_loss_forward(hidden, head, targets, weights, chunks, vocab_size, losses_and_gradient):
    head_cast = head.astype(hidden.dtype)

    def chunk_step(head_gradient, chunk):
        hidden_chunk, target_chunk, weight_chunk = chunk
        logits = _logits(hidden_chunk, head_cast)
        losses, logits_gradient = losses_and_gradient(logits, target_chunk, weight_chunk, vocab_size)
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


def _head_loss_backward(chunks, vocab_size, _, residuals, gradient):
    hidden_gradient, head_gradient = residuals
    return (hidden_gradient * gradient).astype(hidden_gradient.dtype), head_gradient * gradient, None, None


_head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def _logits(hidden, head):
    # In the dtype of the products: half the memory in bfloat16. What is computed of them is float32.
    return jnp.einsum("btd,vd->btv", hidden, head)


def losses_and_gradient(
    logits: Float[Array, "b t v"], targets: Int[Array, "b t"], weights: Float[Array, "b t"], vocab_size: int
) -> tuple[Float[Array, "b t"], Float[Array, "b t v"]]:
    """Token losses in float32, and the gradient of weights x losses for the logits, in their dtype.

    What stands in the logits behind `vocab_size` has no probability.
    """
    dtype, index = logits.dtype, jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    logits = jnp.where(index < vocab_size, logits.astype(jnp.float32), -jnp.inf)
    # Shifted before anything is added up: large logits keep their digits.
    logits = logits - jnp.max(logits, axis=-1, keepdims=True)
    log_total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1, keepdims=True))
    target_logits = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    probabilities = jnp.exp(logits - log_total)
    gradient = (probabilities - (index == targets[..., None])) * weights[..., None]
    return (log_total - target_logits)[..., 0], gradient.astype(dtype)


def _cut_time(arrays, chunks):
    """Each `[b, t, ...]` as `[chunks, b, t / chunks, ...]`. Cutting time leaves a batch sharded over devices whole."""

    def cut(x):
        batch, length, *rest = x.shape
        if length % chunks:
            raise ValueError(f"chunks {chunks} must divide the {length} positions")
        return jnp.moveaxis(x.reshape(batch, chunks, length // chunks, *rest), 1, 0)

    return jax.tree.map(cut, arrays)
