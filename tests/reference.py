"""A GPT in NumPy float64: loops and the papers' formulas, no tricks. Slow, and right by inspection.

It handles one sequence: tokens are [length], hidden states [length, d_model]; a batch is a loop in the test.
Parameters are nested dictionaries with the names of `tinygpt_jax.model`, so a test hands over a model's own.
Read from the top: the whole model first, then its parts, down to single numbers.
"""

import math

import numpy as np


def gpt(params, tokens, *, n_layers, n_heads, norm, activation, positions):
    """Logits [length, vocab] for the token after each of `tokens`, without dropout."""
    table = params["token_embedding"]  # [vocab, d_model]
    x = embed(table, tokens)
    length, d_model = x.shape
    if positions != "learned":  # Vaswani et al. 2017, 3.4 and 3.5
        x = math.sqrt(d_model) * x
    if positions == "sinusoidal":
        x = x + sinusoidal_encoding(length, d_model)
    elif positions == "learned":  # Radford et al. 2018, 3.1
        x = x + params["position_embedding"][:length]
    block = post_norm_block if norm == "post" else pre_norm_block
    for layer in range(n_layers):
        x = block(params[f"blocks_{layer}"], x, n_heads, activation, positions == "rotary")
    if norm == "pre":
        x = layer_norm(x, **params["final_norm"])
    head = params.get("head_weight", table)  # tied: the token table serves twice (Press & Wolf 2017)
    return linear(x, head.T)


def post_norm_block(params, x, n_heads, activation, turned=False):
    """Vaswani et al. 2017, 3.1: each sub-layer is LayerNorm(x + Sublayer(x))."""
    x = layer_norm(x + multi_head_attention(params["attention"], x, n_heads, turned), **params["attention_norm"])
    update = feed_forward(x, **params["feed_forward"], activation=activation)
    return layer_norm(x + update, **params["feed_forward_norm"])


def pre_norm_block(params, x, n_heads, activation, turned=False):
    """Radford et al. 2019, 2.3: each sub-layer is x + Sublayer(LayerNorm(x))."""
    x = x + multi_head_attention(params["attention"], layer_norm(x, **params["attention_norm"]), n_heads, turned)
    normed = layer_norm(x, **params["feed_forward_norm"])
    return x + feed_forward(normed, **params["feed_forward"], activation=activation)


def multi_head_attention(params, x, n_heads, turned=False):
    """Vaswani et al. 2017, 3.2.2: head h attends with the h-th slice of the queries, keys and values."""
    length, d_model = x.shape
    query, key, value = np.split(linear(x, params["qkv_weight"], params["qkv_bias"]), 3, axis=-1)
    head_dim = d_model // n_heads
    heads = []
    for head in range(n_heads):
        mine = slice(head * head_dim, (head + 1) * head_dim)
        q, k = (rotary(x[:, mine]) if turned else x[:, mine] for x in (query, key))
        heads.append(attention(q, k, value[:, mine], causal_mask(length, length)))
    return linear(np.concatenate(heads, axis=-1), params["out_weight"], params["out_bias"])


def feed_forward(x, weight_in, bias_in, weight_out, bias_out, activation):
    """Vaswani et al. 2017, (2): two linear maps with a non-linearity between."""
    hidden = linear(x, weight_in, bias_in)
    hidden = relu(hidden) if activation == "relu" else gelu_tanh(hidden)
    return linear(hidden, weight_out, bias_out)


def attention(query, key, value, mask=None):
    """Vaswani et al. 2017, (1), one query at a time: softmax(q K^T / sqrt(head_dim)) V, over the keys it may see.

    Shapes: query [queries, head_dim], key and value [keys, head_dim], mask [queries, keys] with True for "may see".
    A query that may see no key gets zeros.
    """
    output = np.zeros((len(query), value.shape[1]))
    for i in range(len(query)):
        visible = [j for j in range(len(key)) if mask is None or mask[i, j]]
        if not visible:
            continue
        scores = np.array([query[i] @ key[j] / math.sqrt(len(query[i])) for j in visible])
        for weight, j in zip(softmax(scores), visible, strict=True):
            output[i] += weight * value[j]
    return output


def causal_mask(query_length, key_length):
    """True where query i may see key j. The queries are the last `query_length` of `key_length` positions."""
    mask = np.zeros((query_length, key_length), dtype=bool)
    for i in range(query_length):
        position = key_length - query_length + i
        for j in range(key_length):
            mask[i, j] = j <= position
    return mask


def sinusoidal_encoding(length, d_model):
    """Vaswani et al. 2017, 3.5: each pair of features is the sine and cosine of one frequency."""
    encoding = np.zeros((length, d_model))
    for position in range(length):
        for i in range(d_model // 2):
            angle = position / 10000 ** (2 * i / d_model)
            encoding[position, 2 * i] = math.sin(angle)
            encoding[position, 2 * i + 1] = math.cos(angle)
    return encoding


def rotary(x):
    """Su et al. 2021, (34), in the order of GPT-NeoX: features i and i + e/2 turn by the angle p / 10000^(2i/e)."""
    turned = np.zeros(x.shape)
    half = x.shape[1] // 2
    for position in range(len(x)):
        for i in range(half):
            angle = position / 10000 ** (2 * i / x.shape[1])
            plane = x[position, i], x[position, i + half]
            turned[position, i] = plane[0] * math.cos(angle) - plane[1] * math.sin(angle)
            turned[position, i + half] = plane[1] * math.cos(angle) + plane[0] * math.sin(angle)
    return turned


def orthogonal_direction(matrix, steps=5):
    """Jordan et al. 2024: the Newton-Schulz iteration on singular values alone, s <- a s + b s^3 + c s^5."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(steps):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ np.diag(values) @ right


def embed(table, tokens):
    """Row `token` of the table [vocab, d_model] for each token."""
    return np.array([table[token] for token in tokens])


def linear(x, weight, bias=0.0):
    """x W + b, with the weight [inputs, outputs]."""
    return x @ weight + bias


def layer_norm(x, scale, bias, epsilon=1e-5):
    """Ba et al. 2016, (4), over the last axis, with epsilon inside the root."""
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * scale + bias


def relu(x):
    """max(0, x)."""
    return np.maximum(0.0, x)


def gelu_tanh(x):
    """Hendrycks & Gimpel 2016, 2: the tanh approximation, which GPT-2 uses."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(scores):
    """Probabilities from scores [n]. Subtracting the largest changes no ratio and keeps exp finite."""
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def cross_entropy(logits, targets, mask=None):
    """Mean of -log softmax(logits)[target] in nats, over the targets where the mask is True; 0 if there are none.

    Shapes: logits [length, vocab], targets and mask [length].
    """
    losses = []
    for i, target in enumerate(targets):
        if mask is None or mask[i]:
            largest = logits[i].max()
            log_sum = largest + math.log(np.exp(logits[i] - largest).sum())
            losses.append(log_sum - logits[i, target])
    return sum(losses) / max(len(losses), 1)


def embed_gradient(table, tokens, cotangent):
    """Derivative of sum(embed(table, tokens) * cotangent) by the table: a token used twice gets both."""
    gradient = np.zeros_like(table)
    for token, row in zip(tokens, cotangent, strict=True):
        gradient[token] += row
    return gradient


def cross_entropy_gradient(logits, targets, mask):
    """Derivative of `cross_entropy` by the logits: (softmax - one_hot(target)) / number of targets counted."""
    gradient = np.zeros_like(logits)
    for i, target in enumerate(targets):
        if mask[i]:
            gradient[i] = softmax(logits[i])
            gradient[i, target] -= 1
    return gradient / max(np.sum(mask), 1)


def numerical_gradient(f, x, step=1e-5):
    """Derivative of the scalar f by every element of the array x, by central differences."""
    x = np.array(x, dtype=np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        value = x[index]
        x[index] = value + step
        above = f(x)
        x[index] = value - step
        below = f(x)
        x[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient
