// The GPT, in the order of model.py: parameters by their names there, and calls of functional.js.

class GPT {
  // config: ModelConfig's fields. params: a Map from names such as "blocks_0.attention.qkv_weight" to float32 arrays.
  constructor(config, params) {
    this.config = config;
    this.params = params;
    this.activation = ACTIVATIONS[config.activation];
  }

  param(...path) {
    const name = path.join("."), values = this.params.get(name);
    if (!values) throw new Error(`the model has no parameter ${name}`);
    return values;
  }

  // Room for a context's keys, values and attention weights of each layer, and for the residual stream: layer 0 is the
  // embedding, layer l what block l gives, [c, d] each.
  empty_cache() {
    const { n_layers, context_length, d_model } = this.config;
    const room = () => new Float32Array(context_length * d_model);
    const layers = Array.from({ length: n_layers }, () => ({ keys: room(), values: room(), weights: [] }));
    return { layers, residual: Array.from({ length: n_layers + 1 }, room), length: 0 };
  }

  // Read a token into the next column of the cache, and return the logits of the token that follows it.
  decode(token, cache) {
    const position = cache.length, { n_layers, d_model, context_length } = this.config;
    if (position >= context_length) throw new Error(`the context of ${context_length} tokens is full`);
    let x = this.embed(token, position);
    cache.residual[0].set(x, position * d_model);
    for (let layer = 0; layer < n_layers; layer++) {
      x = this.block(layer, x, position, cache.layers[layer]);
      cache.residual[layer + 1].set(x, position * d_model);
    }
    cache.length = position + 1;
    return this.logits(this.config.norm === "pre" ? this.norm("final_norm", x) : x);
  }

  embed(token, position) {
    const { d_model, positions } = this.config;
    const x = embed(this.param("token_embedding"), token, d_model);
    if (positions === "learned") return add(x, embed(this.param("position_embedding"), position, d_model));
    if (positions === "rotary") return x;
    // sqrt(d_model) lifts embeddings of 0.02 to the size of the sinusoids (Vaswani et al. 2017, 3.4).
    return add(x.map((feature) => feature * Math.sqrt(d_model)), sinusoidal_encoding(position, d_model));
  }

  logits(hidden) {
    return token_logits(hidden, this.param(this.config.tie_embeddings ? "token_embedding" : "head_weight"));
  }

  // Attention and feed-forward, each with a residual connection and a LayerNorm after or before it.
  block(layer, x, position, cache) {
    const name = `blocks_${layer}`;
    const attend = (x) => this.self_attention(`${name}.attention`, x, position, cache);
    const feed = (x) => this.feed_forward(`${name}.feed_forward`, x);
    const attention_norm = (x) => this.norm(`${name}.attention_norm`, x);
    const feed_forward_norm = (x) => this.norm(`${name}.feed_forward_norm`, x);
    if (this.config.norm === "pre") {
      x = add(attend(attention_norm(x)), x);
      return add(feed(feed_forward_norm(x)), x);
    }
    x = attention_norm(add(attend(x), x));
    return feed_forward_norm(add(feed(x), x));
  }

  self_attention(name, x, position, cache) {
    const { n_heads, positions } = this.config;
    const qkv = linear(x, this.param(name, "qkv_weight"), this.param(name, "qkv_bias"));
    if (positions === "rotary") rotary(qkv, n_heads, position);
    const mixed = self_attention(qkv, n_heads, cache, position);
    return linear(mixed, this.param(name, "out_weight"), this.param(name, "out_bias"));
  }

  feed_forward(name, x) {
    const [weight_in, bias_in, weight_out, bias_out] = ["weight_in", "bias_in", "weight_out", "bias_out"].map((part) =>
      this.param(name, part),
    );
    return feed_forward(x, weight_in, bias_in, weight_out, bias_out, this.activation);
  }

  norm(name, x) {
    return layer_norm(x, this.param(name, "scale"), this.param(name, "bias"));
  }

  // The logit lens (nostalgebraist 2020): logits if the output head read the residual stream after a layer. The head
  // expects what the last LayerNorm gives. With pre-LN that is the final one; with post-LN the last block's, which the
  // last layer of the stream has behind it.
  lens(layer, column, cache) {
    const { n_layers, d_model, norm } = this.config;
    const x = cache.residual[layer].slice(column * d_model, (column + 1) * d_model);
    if (norm === "post" && layer === n_layers) return this.logits(x);
    return this.logits(this.norm(norm === "pre" ? "final_norm" : `blocks_${n_layers - 1}.feed_forward_norm`, x));
  }
}
