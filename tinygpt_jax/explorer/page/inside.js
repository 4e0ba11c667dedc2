// What the model computed at the token under the cursor: its alternatives, what comes next, and layer by layer.

const LENS_COLUMNS = 5;

// What the model expected in place of a token, each to be chosen; null for what was not predicted.
function alternatives_of(place, { reading, truth, choose }) {
  const expected = place > 0 ? reading.expected[place - 1] : null, token = reading.tokens[place];
  if (!expected) return null;
  const few = [...expected.few], exact = truth?.[place - 1];
  if (!few.some((one) => one.token === token)) few.push({ token, p: Math.exp(-reading.nats[place]) });
  const rows = few.map((one) => ({
    text: name_of(one.token, reading),
    shares: shares({ model: one.p, true: exact && (exact.get(one.token) ?? 0) }),
    chosen: one.token === token,
    choose: () => choose(place, one.token),
  }));
  const table = bars(`What could stand in place of ${name_of(token, reading)}`, rows);
  return exact ? element("div", {}, element("p", { class: "soft" }, ...key_of({ true: exact })), table) : table;
}

// Probabilities of the next token: the model's, those left by the rules of sampling, and the exact ones; null for none.
function next_of(logits, settings, exact, reading) {
  const before = softmax(logits), after = settings && softmax(after_rules(logits, settings));
  const tokens = new Set(largest_few(before, ALTERNATIVES).map(({ token }) => token));
  for (const token of exact ? largest_few_of(exact, ALTERNATIVES) : []) tokens.add(token);
  const rows = [...tokens]
    .sort((one, other) => before[other] - before[one])
    .map((token) => ({
      text: name_of(token, reading),
      shares: shares({ model: before[token], after: after?.[token], true: exact && (exact.get(token) ?? 0) }),
    }));
  return bars("Probabilities of the next token", rows);
}

// The likeliest tokens after each layer, as the output head would have it.
function lens_of({ cache, column }, reading) {
  const { model } = reading, rows = [];
  for (let layer = 0; layer <= model.config.n_layers; layer++) {
    const probabilities = softmax(model.lens(layer, column, cache));
    const cells = largest_few(probabilities, LENS_COLUMNS).map(({ token, value }) =>
      shade(element("td", {}, name_of(token, reading), element("small", {}, percent(value))), value),
    );
    rows.push(element("tr", {}, element("th", { scope: "row" }, layer ? `layer ${layer}` : "embedding"), ...cells));
  }
  return element("table", { class: "lens", "aria-label": "The likeliest tokens after each layer" }, element("tbody", {}, ...rows));
}

function shares(by_kind) {
  return Object.entries(by_kind).flatMap(([kind, share]) => (share == null ? [] : [{ kind, share }]));
}

function largest_few_of(distribution, most) {
  return [...distribution].sort(([, p], [, q]) => q - p).slice(0, most).map(([token]) => token);
}

function name_of(token, reading) {
  return token === reading.tokenizer.end_of_text ? quoted("") : quoted(reading.tokenizer.decode([token]));
}

// What the bars mean, in words and colours. kinds: those that are shown besides the model's.
function key_of(kinds) {
  const parts = [element("span", { class: "key model" }), "the model"];
  if (kinds.after) parts.push(element("span", { class: "key after" }), "after temperature, top-k and top-p");
  if (kinds.true) parts.push(element("span", { class: "key true" }), "the storyteller's own");
  return parts;
}
