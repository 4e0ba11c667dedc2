// The mathematics of the model, for one position at a time: the functions of functional.py, in its order and under its
// names. There is no batch, and no mask: a cache holds only what came before. Dropout is for training.
//
// Letters in shapes: d features of the residual stream, e features of one head, f features of the feed-forward hidden
// layer, v vocabulary, c positions in the cache. A matrix stands with its outputs first, [outputs, inputs], row after
// row, and is float32 like every vector; sums are float64, which is what JavaScript computes in.

// x W + b. Four outputs at a time: each feature of x is read once for four products.
function linear(x, weight, bias = null) {
  const inputs = x.length, outputs = weight.length / inputs, y = new Float32Array(outputs);
  let o = 0;
  for (; o + 4 <= outputs; o += 4) {
    let r = o * inputs, s = r + inputs, t = s + inputs, u = t + inputs;
    let a = 0, b = 0, c = 0, d = 0;
    for (let i = 0; i < inputs; i++) {
      const feature = x[i];
      a += feature * weight[r + i];
      b += feature * weight[s + i];
      c += feature * weight[t + i];
      d += feature * weight[u + i];
    }
    y[o] = a;
    y[o + 1] = b;
    y[o + 2] = c;
    y[o + 3] = d;
  }
  for (; o < outputs; o++) {
    let sum = 0;
    for (let i = 0; i < inputs; i++) sum += x[i] * weight[o * inputs + i];
    y[o] = sum;
  }
  return bias ? add(y, bias) : y;
}

// Mean 0 and variance 1 over the features, then scale and shift (Ba et al. 2016, eq. 4).
function layer_norm(x, scale, bias, epsilon = 1e-5) {
  let mean = 0, variance = 0;
  for (const feature of x) mean += feature;
  mean /= x.length;
  for (const feature of x) variance += (feature - mean) ** 2;
  const inverse = 1 / Math.sqrt(variance / x.length + epsilon);
  return x.map((feature, i) => (feature - mean) * inverse * scale[i] + bias[i]);
}

// max(x, 0) (Glorot et al. 2011).
function relu(x) {
  return x > 0 ? x : 0;
}

// GELU in the tanh form that GPT-2 uses (Hendrycks & Gimpel 2016, section 2). (1 + tanh u) / 2 = 1 / (1 + exp(-2 u)),
// and exp is the faster one.
function gelu(x) {
  const inner = Math.sqrt(2 / Math.PI) * (x + 0.044715 * x * x * x);
  return x / (1 + Math.exp(-2 * inner));
}

const ACTIVATIONS = { relu, gelu };

// Two linear maps with a non-linearity between (Vaswani et al. 2017, eq. 2).
function feed_forward(x, weight_in, bias_in, weight_out, bias_out, activation) {
  const hidden = linear(x, weight_in, bias_in);
  for (let i = 0; i < hidden.length; i++) hidden[i] = activation(hidden[i]);
  return linear(hidden, weight_out, bias_out);
}

// sin(p / 10000^(2i/d)) on feature 2i, cos on 2i + 1 (Vaswani et al. 2017, 3.5), for the position p.
function sinusoidal_encoding(position, d_model) {
  return Float32Array.from({ length: d_model }, (_, feature) => {
    const angle = position * 10_000 ** (-(feature - (feature % 2)) / d_model);
    return feature % 2 ? Math.cos(angle) : Math.sin(angle);
  });
}

// Queries and keys turned by their position (Su et al. 2021, eq. 34), in place: features i and i + e/2 of each head are
// the plane that turns by the angle p / base^(2i/e). Values stay.
function rotary(qkv, n_heads, position, base = 10_000) {
  const half = qkv.length / (6 * n_heads);
  for (let i = 0; i < half; i++) {
    const angle = position * base ** (-i / half), sine = Math.sin(angle), cosine = Math.cos(angle);
    for (let head = 0; head < 2 * n_heads; head++) {
      const at = 2 * half * head + i, x = qkv[at], y = qkv[at + half];
      qkv[at] = x * cosine - y * sine;
      qkv[at + half] = y * cosine + x * sine;
    }
  }
}

// softmax(q K^T / sqrt(e)) V (Vaswani et al. 2017, eq. 1) of one query and one head, over the first `length` rows of
// keys and values [c, d], of which this head's features begin at `first`. Writes to `mixed` there; returns the weights.
function attention(query, keys, values, length, first, head_dim, mixed) {
  const d_model = query.length, scale = head_dim ** -0.5, scores = new Float32Array(length);
  for (let k = 0; k < length; k++) {
    let product = 0;
    for (let i = first; i < first + head_dim; i++) product += query[i] * keys[k * d_model + i];
    scores[k] = product * scale;
  }
  const weights = softmax(scores);
  for (let k = 0; k < length; k++) {
    const weight = weights[k];
    for (let i = first; i < first + head_dim; i++) mixed[i] += weight * values[k * d_model + i];
  }
  return weights;
}

// Attention in several heads (Vaswani et al. 2017, 3.2.2), for the query of a position whose keys and values go into
// the cache of its layer: { keys, values, weights }. The weights are kept for who wants to see them.
function self_attention(qkv, n_heads, cache, position) {
  const d_model = qkv.length / 3, head_dim = d_model / n_heads, mixed = new Float32Array(d_model);
  cache.keys.set(qkv.subarray(d_model, 2 * d_model), position * d_model);
  cache.values.set(qkv.subarray(2 * d_model), position * d_model);
  const query = qkv.subarray(0, d_model);
  cache.weights[position] = Array.from({ length: n_heads }, (_, head) =>
    attention(query, cache.keys, cache.values, position + 1, head * head_dim, head_dim, mixed),
  );
  return mixed;
}

// The table's row for a token.
function embed(table, token, d_model) {
  return table.slice(token * d_model, (token + 1) * d_model);
}

// How well each token's row of the head [v, d] fits a hidden state.
function token_logits(hidden, head) {
  return linear(hidden, head);
}

// exp(z) / sum(exp(z)), shifted by the largest so that exp cannot overflow. -Infinity is for what cannot be.
function softmax(logits) {
  const largest = maximum(logits), exponents = logits.map((logit) => Math.exp(logit - largest));
  let total = 0;
  for (const exponent of exponents) total += exponent;
  return exponents.map((exponent) => exponent / total);
}

// -ln softmax(z) of every token, in nats, as ln(sum(exp(z))) - z.
function token_losses(logits) {
  const largest = maximum(logits);
  let total = 0;
  for (const logit of logits) total += Math.exp(logit - largest);
  const log_total = Math.log(total) + largest;
  return logits.map((logit) => log_total - logit);
}

function maximum(numbers) {
  let largest = -Infinity;
  for (const number of numbers) if (number > largest) largest = number;
  return largest;
}

// x + y, feature by feature, into x.
function add(x, y) {
  for (let i = 0; i < x.length; i++) x[i] += y[i];
  return x;
}
