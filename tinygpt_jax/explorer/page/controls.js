// What the page's fields and buttons say, and the two tabs.

const SETTINGS = ["temperature", "top_k", "top_p", "seed", "most"];

// The settings of sampling, or null where a field has no valid number; which, and what the browser says of it, is shown.
function settings_given() {
  const fields = SETTINGS.map($), wrong = fields.find((field) => !field.checkValidity());
  $("settings-problem").hidden = !wrong;
  $("settings-problem").textContent = wrong ? `${wrong.labels[0].textContent.trim()}: ${wrong.validationMessage}` : "";
  return wrong ? null : Object.fromEntries(fields.map((field) => [field.id, field.valueAsNumber]));
}

// Tabs as the pattern of WAI-ARIA has them: a click, or arrow keys, choose one. chosen("write" or "read").
function make_tabs(chosen) {
  const names = ["write", "read"];
  const choose = (name) => {
    for (const other of names) {
      $(`${other}-tab`).setAttribute("aria-selected", String(other === name));
      $(`${other}-tab`).tabIndex = other === name ? 0 : -1;
      $(`${other}-panel`).hidden = other !== name;
    }
    chosen(name);
  };
  for (const name of names) {
    $(`${name}-tab`).addEventListener("click", () => choose(name));
    $(`${name}-tab`).addEventListener("keydown", (event) => {
      if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
      const other = names.find((one) => one !== name);
      choose(other);
      $(`${other}-tab`).focus();
    });
  }
  return choose;
}

// The versions of a story as buttons, in the order in which they were begun.
function show_versions(versions, current, choose) {
  $("versions").hidden = versions.length < 2;
  const items = versions.map(({ name }, number) =>
    element("li", {}, element("button", { click: () => choose(number), "aria-current": String(number === current) }, name)),
  );
  $("version-list").replaceChildren(...items);
}

// The sum of what was said of a text: its tokens, loss, bits per byte, and the storyteller's own figures.
function figures_of(reading, exact) {
  const predicted = reading.nats.flatMap((nats, place) => (nats === null ? [] : [place]));
  if (!predicted.length) return "";
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const nats = sum(predicted.map((place) => reading.nats[place]));
  const bytes = sum(predicted.map((place) => reading.tokenizer.bytes(reading.tokens[place]).length));
  const loss = nats / predicted.length;
  const said = [many(predicted.length, "token"), `${loss.toFixed(3)} nats per token`, `perplexity ${decimals(Math.exp(loss), 2)}`];
  if (bytes) said.push(`${(nats / Math.LN2 / bytes).toFixed(3)} bits per byte`);
  if (exact) {
    const { truth, never } = exact, known = exact.nats.filter((value) => value !== null);
    if (never === null) {
      const own = predicted.map((place) => -Math.log(truth[place - 1].get(reading.tokens[place])));
      said.push(`the storyteller's own probabilities: ${(sum(own) / own.length).toFixed(3)} nats per token`);
    } else said.push(`the storyteller would never say this (from token ${never} on, which is marked)`);
    const until = never === null ? "" : ` over the ${many(known.length, "token")} until then`;
    if (known.length) said.push(`divergence from it ${(sum(known) / known.length).toFixed(4)} nats per token${until}`);
  }
  return said.join(", ");
}
