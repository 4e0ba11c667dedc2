// The explorer: what is shown, and what happens when somebody does something.

class Explorer {
  constructor(facts) {
    this.facts = facts;
    this.tokenizer = new Tokenizer(facts.merges, facts.kept);
    this.storyteller = facts.storyteller && new Storyteller(facts.storyteller.template, facts.storyteller.words);
    this.mode = "write";
    this.versions = []; // of the story that is written: { name, tokens, prompt }
    this.version = 0;
    this.exact = null; // what the storyteller says of the text shown: { truth, nats }, by place
    this.heads = new HeadsView();
    const alternatives = (place) => alternatives_of(place, this.for_alternatives());
    this.text = new TextView($("tokens"), $("hover"), () => this.look(), alternatives);
  }

  // Open a checkpoint, with nothing read yet.
  async open(number) {
    const { config, parameters, checkpoints } = this.facts, { step, validation_loss } = checkpoints[number];
    this.model = new GPT(config, await unpack($(`weights-${number}`).textContent, parameters));
    this.readings = {
      write: new Reading(this.model, this.tokenizer, "writing"),
      read: new Reading(this.model, this.tokenizer, "measuring"),
    };
    const loss = validation_loss === null ? "" : `, validation loss ${validation_loss.toFixed(3)}`;
    $("checkpoint-said").textContent = `after ${count(step)} updates${loss}`;
    const size = parameters.reduce((sum, { shape }) => sum + shape.reduce((product, n) => product * n, 1), 0);
    $("about").textContent =
      `${count(size)} parameters in ${config.n_layers} layers of ${config.n_heads} heads, width ${config.d_model}; it sees ` +
      `${count(config.context_length)} tokens, of a vocabulary of ${count(config.vocab_size)}. Learned from ` +
      `${this.facts.source} in ${count(step)} updates${loss && `${loss} nats per token`}. Weights in ${this.facts.form}.`;
  }

  get reading() {
    return this.readings[this.mode];
  }

  // Do a generator's work while the page answers, in place of what is under way. Returns whether it came to its end.
  async work(generator) {
    this.stop();
    const stopping = (this.stopping = new AbortController());
    this.exact = null;
    this.speed = null; // tokens written per second
    this.busy(true);
    let shown = performance.now();
    const between = () => {
      if (performance.now() - shown < 120) return;
      this.text.show(this.reading);
      shown = performance.now();
    };
    await at_work(generator, stopping.signal, between);
    if (this.stopping !== stopping) return false; // something else is under way
    this.busy(false);
    this.show();
    if (!this.storyteller) return true;
    this.stopping = new AbortController();
    await at_work(this.compare(), this.stopping.signal);
    return true;
  }

  stop() {
    this.stopping?.abort();
  }

  busy(is_busy) {
    for (const button of document.querySelectorAll(".stop")) button.disabled = !is_busy;
    $("tokens").setAttribute("aria-busy", String(is_busy));
    if (is_busy) $("said").textContent = "";
  }

  // Write a story from the prompt.
  async write() {
    const tokens = [this.tokenizer.end_of_text, ...this.tokenizer.encode($("prompt").value)];
    this.prompt = $("prompt").value;
    await this.begin([{ name: "As first written", tokens, prompt: tokens.length }]);
  }

  async begin(versions, most) {
    const settings = settings_given();
    if (!settings) return;
    this.versions = versions;
    this.version = versions.length - 1;
    const { tokens, prompt } = versions[this.version];
    await this.work(this.writing(tokens, prompt, settings, most ?? settings.most));
  }

  // Go on with the story: a token, or as many as are asked for.
  async go_on(most) {
    if (!this.versions.length || this.prompt !== $("prompt").value) {
      this.prompt = $("prompt").value;
      const tokens = [this.tokenizer.end_of_text, ...this.tokenizer.encode(this.prompt)];
      return this.begin([{ name: "As first written", tokens, prompt: tokens.length }], most);
    }
    const settings = settings_given(), { prompt } = this.versions[this.version];
    if (settings) await this.work(this.writing([...this.readings.write.tokens], prompt, settings, most ?? settings.most));
  }

  *writing(tokens, prompt, settings, most) {
    const reading = this.readings.write, end = this.tokenizer.end_of_text;
    yield* reading.read(tokens, prompt);
    const began = performance.now();
    for (let written = 0; written < most; written++) {
      if (reading.tokens.length > 1 && reading.tokens.at(-1) === end) return;
      const logits = after_rules(reading.logits, settings);
      yield* reading.append(categorical(uniform(settings.seed, reading.tokens.length), logits));
      this.speed = (1000 * (written + 1)) / (performance.now() - began);
    }
  }

  async read() {
    await this.work(this.readings.read.read([this.tokenizer.end_of_text, ...this.tokenizer.encode($("given").value)]));
  }

  // Go on from another token at a place: a new version, and the one before stays.
  async choose(place, token) {
    const { tokens } = this.reading, kept = this.mode === "write" ? this.versions : [];
    if (this.mode === "write") this.keep_version();
    else kept.push({ name: "The text that was read", tokens: [...tokens], prompt: place });
    const name = `${name_of(token, this.reading)} in place of ${name_of(tokens[place], this.reading)} (token ${place})`;
    const prompt = this.mode === "write" ? Math.min(place, this.versions[this.version].prompt) : place;
    this.text.hide();
    if (this.mode === "read") this.choose_tab("write");
    await this.begin([...kept, { name, tokens: [...tokens.slice(0, place), token], prompt }]);
  }

  // The way back: show a version as it was left.
  async return_to(number) {
    this.keep_version();
    this.version = number;
    const { tokens, prompt } = this.versions[number];
    await this.work(this.readings.write.read(tokens, prompt));
  }

  keep_version() {
    this.versions[this.version].tokens = [...this.readings.write.tokens];
  }

  // The same text with another checkpoint: written from the same prompt with the same seed, or read again.
  async watch(number) {
    this.stop();
    const opening = (this.opening = {});
    await this.open(number);
    if (this.opening === opening) await (this.mode === "write" ? this.write() : this.read());
  }

  show() {
    this.text.show(this.reading);
    this.show_figures();
    show_versions(this.mode === "write" ? this.versions : [], this.version, (number) => this.return_to(number));
    $("said").textContent = this.tokenizer.decode(this.reading.tokens);
    const last = this.reading.tokens.length - 1;
    // At first the cursor goes where there is most to see.
    if (last >= 0) this.text.choose(Math.min(this.text.cursor ?? argmax(this.reading.nats.map((nats) => nats ?? 0)), last));
    $("inside").hidden = last < 0;
  }

  show_figures() {
    const speed = this.speed ? `; written at ${count(Math.round(this.speed))} tokens per second` : "";
    $("figures").textContent = figures_of(this.reading, this.exact) + speed;
  }

  // Look inside at the token under the cursor.
  async look() {
    this.looking?.abort();
    const looking = (this.looking = new AbortController()), { reading, text } = this, place = text.cursor;
    if (!reading.expected[place]) {
      $("inside-title").textContent = `Token ${place}: before what the model sees`;
      return;
    }
    const window = await at_work(reading.window_of(place), looking.signal);
    if (this.looking !== looking || !window) return;
    const name = place === 0 ? "the beginning" : name_of(reading.tokens[place], reading);
    const nats = reading.nats[place] === null ? "" : `, ${reading.nats[place].toFixed(2)} nats`;
    $("inside-title").textContent = `Token ${place}: ${name}${nats}`;
    $("instead").replaceChildren(alternatives_of(place, this.for_alternatives()) ?? "It was given, not predicted.");
    this.window = window;
    this.show_next();
    const first = window.start, pieces = reading.tokenizer.decode_each(reading.tokens).slice(first, first + window.cache.length);
    if (first === 0) pieces[0] = "⊢";
    this.heads.show(window, pieces, this.model.config);
    $("lens").replaceChildren(lens_of(window, reading));
  }

  show_next() {
    const { reading, window, text } = this, settings = settings_given();
    if (!window || !settings) return;
    const exact = this.exact?.truth[text.cursor], nats = this.exact?.nats[text.cursor] ?? null;
    $("next-about").replaceChildren(...key_of(Boolean(exact), nats));
    $("next").replaceChildren(next_of(this.model.lens(this.model.config.n_layers, window.column, window.cache), settings, exact, reading));
  }

  // What the storyteller would say at each place, and how far the model is from it; then show it.
  *compare() {
    const { reading } = this, { tokens, tokenizer } = reading, exact = { truth: [], nats: [] };
    for (let place = 0; place < tokens.length; place++) {
      const over = place > 0 && tokens[place] === tokenizer.end_of_text;
      const truth = over ? new Map() : this.storyteller.next_token(tokens.slice(0, place + 1), tokenizer);
      exact.truth.push(truth.size ? truth : undefined);
      exact.nats.push(null);
      if (!truth.size) continue;
      yield;
      if (reading.expected[place]) {
        const { cache, column } = yield* reading.window_of(place);
        exact.nats[place] = divergence(truth, token_losses(this.model.lens(this.model.config.n_layers, column, cache)));
      }
    }
    this.exact = exact;
    this.show_figures();
    this.look();
  }

  for_alternatives() {
    return { reading: this.reading, truth: this.exact?.truth, choose: (place, token) => this.choose(place, token) };
  }
}

async function start() {
  const explorer = (globalThis.explorer = new Explorer(JSON.parse($("facts").textContent)));
  const last = explorer.facts.checkpoints.length - 1;
  $("checkpoint").max = $("checkpoint").value = last;
  $("watch").hidden = last === 0;
  await explorer.open(last);
  document.querySelector("main").hidden = false;
  $("prompt").value = "Once upon a time";
  explorer.choose_tab = make_tabs((mode) => {
    explorer.stop();
    explorer.mode = mode;
    explorer.exact = null;
    if (mode === "read" && !$("given").value) $("given").value = explorer.tokenizer.decode(explorer.readings.write.tokens);
    explorer.show();
  });
  const on = (id, event, act) => $(id).addEventListener(event, () => Promise.resolve(act()).catch(complain));
  on("write", "click", () => explorer.write());
  on("step", "click", () => explorer.go_on(1));
  on("go-on", "click", () => explorer.go_on());
  on("read", "click", () => explorer.read());
  on("checkpoint", "input", () => explorer.watch($("checkpoint").valueAsNumber));
  for (const id of ["temperature", "top_k", "top_p"]) on(id, "change", () => explorer.show_next());
  for (const button of document.querySelectorAll(".stop")) button.addEventListener("click", () => explorer.stop());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => explorer.look());
  await explorer.write();
}

function complain(error) {
  $("problem").textContent = `Something went wrong: ${error.message}`;
  $("problem").hidden = false;
  console.error(error);
}

start().catch(complain);
