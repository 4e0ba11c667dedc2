// The explorer: what is shown, and what happens when somebody does something.

class Explorer {
  constructor(facts) {
    this.facts = facts;
    this.tokenizer = new Tokenizer(facts.merges, facts.kept);
    this.storyteller = facts.storyteller && new Storyteller(facts.storyteller.template, facts.storyteller.words);
    this.mode = "write";
    this.story = new Story(); // what is written
    this.given = null; // the tokens that are read
    this.exact = null; // what the storyteller says of the text shown: { truth, nats } by place, and never: see compare
    this.heads = new HeadsView();
    const alternatives = (place) => alternatives_of(place, this.for_alternatives());
    this.text = new TextView($("tokens"), $("hover"), () => this.look(), alternatives);
  }

  // Open a checkpoint, with nothing read yet. Returns whether it is still the one that is wanted.
  async open(number) {
    const opening = (this.opening = {});
    const { config, parameters, checkpoints } = this.facts, { step, validation_loss } = checkpoints[number];
    const params = await unpack($(`weights-${number}`).textContent, parameters);
    if (this.opening !== opening) return false;
    this.stop();
    this.step = step;
    this.window = null;
    this.model = new GPT(config, params);
    this.readings = {
      write: new Reading(this.model, this.tokenizer, "writing"),
      read: new Reading(this.model, this.tokenizer, "measuring"),
    };
    const loss = validation_loss === null ? "" : `, validation loss ${validation_loss.toFixed(3)}`;
    $("checkpoint-said").textContent = `after ${many(step, "update")}${loss}`;
    const size = parameters.reduce((sum, { shape }) => sum + shape.reduce((product, n) => product * n, 1), 0);
    $("about").textContent =
      `${count(size)} parameters in ${config.n_layers} layers of ${config.n_heads} heads, width ${config.d_model}; it sees ` +
      `${count(config.context_length)} tokens, of a vocabulary of ${count(config.vocab_size)}. Learned from ` +
      `${this.facts.source} in ${many(step, "update")}${loss && `${loss} nats per token`}. Weights in ${this.facts.form}.`;
    return true;
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
      this.show_figures();
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

  // Write a story from the prompt, beside the versions that were made.
  async write() {
    const settings = settings_given();
    if (!settings) return;
    this.story.clear_untouched();
    await this.begin(settings, settings.most, true);
  }

  async begin(settings, most, untouched) {
    const prompt = $("prompt").value, tokens = [this.tokenizer.end_of_text, ...this.tokenizer.encode(prompt)];
    const when = this.facts.checkpoints.length > 1 ? `, after ${many(this.step, "update")}` : "";
    const name = `${quoted(shortened(prompt))}, seed ${settings.seed}${when}`;
    this.story.begin({ name, tokens, prompt: tokens.length, step: this.step, untouched });
    await this.write_on(settings, most);
  }

  // Go on with the story: a token, or as many as are asked for. Another prompt is another story.
  async go_on(most) {
    const settings = settings_given(), { current } = this.story;
    if (!settings) return;
    if (!current || this.prompt !== $("prompt").value) return this.begin(settings, most ?? settings.most, false);
    current.untouched = false;
    await this.write_on(settings, most ?? settings.most);
  }

  async write_on(settings, most) {
    this.prompt = $("prompt").value; // which the story that is shown has nothing more to do with once it is changed
    await this.work(this.writing(this.story.current, settings, most));
  }

  *writing({ tokens, prompt }, settings, most) {
    const reading = this.readings.write, end = this.tokenizer.end_of_text;
    yield* reading.read([...tokens], prompt);
    const began = performance.now();
    for (let written = 0; written < most; written++) {
      if (tokens.length > 1 && tokens.at(-1) === end) return;
      const token = categorical(uniform(settings.seed, tokens.length), after_rules(reading.logits, settings));
      tokens.push(token);
      yield* reading.append(token);
      this.speed = (1000 * (written + 1)) / (performance.now() - began);
    }
  }

  async read() {
    this.given = [this.tokenizer.end_of_text, ...this.tokenizer.encode($("given").value)];
    await this.restore();
  }

  // Go on from another token at a place: a new version, and all others stay.
  async choose(place, token) {
    const settings = settings_given(), { reading, story, mode } = this, { tokens } = reading;
    if (!settings) return;
    if (mode === "read") story.keep({ name: "The text that was read", tokens: [...this.given], prompt: 1, step: this.step });
    else story.current.untouched = false;
    const name = `${name_of(token, reading)} in place of ${name_of(tokens[place], reading)} (token ${place})`;
    const prompt = mode === "write" ? Math.min(place, story.current.prompt) : place;
    story.begin({ name, tokens: [...tokens.slice(0, place), token], prompt, step: this.step });
    this.text.hide();
    if (mode === "read") this.choose_tab("write");
    await this.write_on(settings, settings.most);
  }

  // The way back: show a version as it was left.
  async return_to(number) {
    this.story.number = number;
    this.prompt = $("prompt").value;
    await this.restore();
  }

  // Read the text of this tab again, as far as it is not read: with another checkpoint, or where it was stopped.
  async restore() {
    const { current } = this.story;
    if (this.mode === "read" && this.given) await this.work(this.reading.read(this.given));
    if (this.mode === "write" && current) await this.work(this.reading.read([...current.tokens], current.prompt));
  }

  async turn_to(mode) {
    this.stop();
    this.mode = mode;
    this.exact = null;
    const { current } = this.story;
    if (mode === "read" && !$("given").value && current) $("given").value = this.tokenizer.decode(current.tokens);
    this.show();
    const other = mode === "write" && current?.untouched && current.step !== this.step;
    await (other && settings_given() ? this.write() : this.restore());
  }

  // The same text with another checkpoint: written from the same prompt with the same seed, or read again.
  async watch(number) {
    this.stop();
    if (await this.open(number)) await (this.mode === "write" && settings_given() ? this.write() : this.restore());
  }

  show() {
    this.text.show(this.reading);
    this.show_figures();
    show_versions(this.mode === "write" ? this.story.versions : [], this.story.number, (number) => this.return_to(number));
    $("said").textContent = this.tokenizer.decode(this.reading.tokens);
    const last = this.reading.tokens.length - 1;
    // Until somebody moves the cursor it goes where there is most to see.
    const most = argmax(this.reading.nats.map((nats) => nats ?? 0));
    if (last >= 0) this.text.choose(this.text.moved ? this.text.cursor : most, this.text.moved);
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
    if (place === null) return;
    $("panels").hidden = !reading.expected[place];
    if (!reading.expected[place]) {
      this.window = null;
      const sees = `the model writes on from the last ${count(this.model.config.context_length)} tokens of a longer prompt`;
      $("inside-title").textContent = `Token ${place}: before what the model sees; ${sees}`;
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
    if (!window) return;
    const exact = this.exact?.truth[text.cursor], nats = this.exact?.nats[text.cursor] ?? null;
    const away = nats === null ? "" : `. The model is ${nats.toFixed(4)} nats from it (KL divergence).`;
    $("next-about").replaceChildren(...key_of({ after: settings, true: exact }), away);
    $("next").replaceChildren(next_of(this.model.lens(this.model.config.n_layers, window.column, window.cache), settings, exact, reading));
  }

  // What the storyteller would say at each place, and how far the model is from it; then show it. Where it would never
  // say the next token, it has nothing more to say.
  *compare() {
    const { reading } = this, { tokens, tokenizer } = reading, exact = { truth: [], nats: [], never: null };
    for (let place = 0; place < tokens.length && exact.never === null; place++) {
      const over = place > 0 && tokens[place] === tokenizer.end_of_text;
      const truth = over ? null : this.storyteller.next_token(tokens.slice(0, place + 1), tokenizer);
      if (place + 1 < tokens.length && !truth?.has(tokens[place + 1])) exact.never = place + 1;
      if (over) break;
      exact.truth.push(truth);
      exact.nats.push(null);
      yield;
      if (reading.expected[place]) {
        const { cache, column } = yield* reading.window_of(place);
        exact.nats[place] = divergence(truth, token_losses(this.model.lens(this.model.config.n_layers, column, cache)));
      }
    }
    this.exact = exact;
    this.text.mark(exact.never);
    this.show_figures();
    this.look();
  }

  for_alternatives() {
    return { reading: this.reading, truth: this.exact?.truth, choose: (place, token) => this.choose(place, token) };
  }
}
