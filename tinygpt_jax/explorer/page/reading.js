// A text as a model reads it: what it expected at every place, and its cache for who looks inside.
//
// Work is done by generators, which yield after each token read, so that `at_work` can let the page answer meanwhile.

const ALTERNATIVES = 10;

class Reading {
  // goes_on: how a text longer than the context is read, see `next_window`.
  constructor(model, tokenizer, goes_on) {
    this.model = model;
    this.tokenizer = tokenizer;
    this.goes_on = goes_on;
    this.clear();
  }

  clear() {
    this.tokens = [];
    this.nats = []; // -ln p of each token, given those before it; null where it was not predicted
    this.expected = []; // after each token: the likeliest next ones, and where the model's window began
    this.logits = this.losses = null; // of the token that would come next, and -ln p of it in nats
    this.begin_window(0);
  }

  begin_window(start) {
    this.start = start; // the first token that the model sees
    this.cache = this.model.empty_cache();
    this.earlier = null;
  }

  // Read a text, the first token of which is end-of-text; what it has in common with the one before is kept. Of a
  // prompt (the first tokens, by default all) that does not fit the context, writing sees the end.
  *read(tokens, prompt = tokens.length) {
    const unseen = this.goes_on === "writing" ? Math.max(0, prompt - this.model.config.context_length) : 0;
    let same = 0;
    while (same < Math.min(tokens.length, this.tokens.length) && tokens[same] === this.tokens[same]) same++;
    if (same < this.tokens.length || same === 0) {
      if (this.start > 0 || unseen > 0 || same === 0) {
        this.clear(); // a later window is not worth mending
        this.begin_window(unseen);
        for (const token of tokens.slice(0, unseen)) this.note(token);
      } else {
        for (const list of [this.tokens, this.nats, this.expected]) list.length = same;
        this.cache.length = same;
        this.expect(this.model.lens(this.model.config.n_layers, same - 1, this.cache));
      }
    }
    for (const token of tokens.slice(this.tokens.length)) yield* this.append(token);
  }

  *append(token) {
    if (this.cache.length === this.model.config.context_length) this.begin_window(this.next_window());
    while (this.start + this.cache.length < this.tokens.length) {
      this.model.decode(this.tokens[this.start + this.cache.length], this.cache);
      yield;
    }
    this.note(token);
    this.expect(this.model.decode(token, this.cache));
    const few = largest_few(this.logits, ALTERNATIVES).map(({ token }) => ({ token, p: Math.exp(-this.losses[token]) }));
    this.expected[this.expected.length - 1] = { start: this.start, few };
    yield;
  }

  note(token) {
    this.tokens.push(token);
    this.nats.push(this.losses ? this.losses[token] : null);
    this.expected.push(null);
  }

  expect(logits) {
    this.logits = logits;
    this.losses = token_losses(logits);
  }

  // Where the next window begins when one is full: writing goes on from the last half of the text, as
  // generation/decoding.py does; a text to be measured from half a window later, as evaluation.py does.
  next_window() {
    const half = Math.max(1, Math.floor(this.model.config.context_length / 2));
    return this.goes_on === "writing" ? this.tokens.length + 1 - half : this.start + half;
  }

  // The cache of the window that a token was read in, and its column there.
  *window_of(place) {
    const start = this.expected[place].start, column = place - start;
    if (start === this.start) return { start, column, cache: this.cache };
    if (this.earlier?.start !== start) {
      const cache = this.model.empty_cache();
      for (const token of this.tokens.slice(start, start + this.model.config.context_length)) {
        this.model.decode(token, cache);
        yield;
      }
      this.earlier = { start, cache };
    }
    return { ...this.earlier, column };
  }
}

// Run a generator to its end, and let the page answer every few milliseconds. Returns what it returns; stopped by
// `signal` it is left where it is, and null is returned.
async function at_work(generator, signal, between = () => {}) {
  let last = performance.now();
  for (let step = generator.next(); ; step = generator.next()) {
    if (step.done) return step.value;
    if (performance.now() - last > 40) {
      await new Promise(next_task);
      if (signal?.aborted) return null;
      between();
      last = performance.now();
    }
  }
}

// As setTimeout(task, 0), which browsers delay by 4 ms.
function next_task(task) {
  const channel = new MessageChannel();
  channel.port1.onmessage = task;
  channel.port2.postMessage(null);
}
