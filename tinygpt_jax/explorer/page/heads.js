// Who looks at whom: a small picture of each head, and a large one.

const MARKED = 0.5; // of a head's weight
const FEWEST_ROWS = 8;

class HeadsView {
  constructor() {
    this.chosen = null; // { layer, head }
  }

  // window: { cache, column, start } of the token under the cursor; pieces: the text of the tokens in the window.
  show(window, pieces, config) {
    Object.assign(this, { window, pieces, config });
    this.chosen ??= { layer: 0, head: 0 };
    const buttons = [];
    for (let layer = 0; layer < config.n_layers; layer++) {
      for (let head = 0; head < config.n_heads; head++) buttons.push(this.small(layer, head));
    }
    const columns = Math.min(config.n_heads, 8);
    $("heads").style.gridTemplateColumns = `repeat(${columns}, minmax(0, 1fr))`;
    const focused = document.activeElement?.dataset?.head;
    $("heads").replaceChildren(...buttons);
    $("habits").textContent = this.most();
    if (focused) $("heads").querySelector(`[data-head="${focused}"]`)?.focus();
    this.large();
  }

  small(layer, head) {
    const habit = this.habit(layer, head), name = `Layer ${layer + 1}, head ${head + 1}`;
    const pressed = this.chosen.layer === layer && this.chosen.head === head;
    const picture = element("canvas", { "aria-hidden": "true" });
    this.draw(picture, layer, head);
    const choose = () => {
      this.chosen = { layer, head };
      this.show(this.window, this.pieces, this.config);
    };
    const said = habit ? `${name}: ${percent(habit.share)} on ${habit.name}` : name;
    const facts = { click: choose, "aria-pressed": String(pressed), "aria-label": said, title: said };
    const label = element("span", {}, `${layer + 1}.${head + 1} `);
    if (habit) label.append(element("b", {}, habit.mark));
    return element("button", { ...facts, "data-head": `${layer}-${head}` }, picture, label);
  }

  rows(layer) {
    return this.window.cache.layers[layer].weights.slice(0, this.window.cache.length);
  }

  // What a head looks at with more than half of its weight, on average.
  habit(layer, head) {
    return this.habits(layer, head).find(({ share }) => share > MARKED) ?? null;
  }

  // Which head does most of each habit.
  most() {
    const { n_layers, n_heads } = this.config, heads = [];
    for (let layer = 0; layer < n_layers; layer++) {
      for (let head = 0; head < n_heads; head++) heads.push({ name: `${layer + 1}.${head + 1}`, habits: this.habits(layer, head) });
    }
    const kinds = heads[0].habits;
    if (!kinds.length) return `What a head looks at on average is said of ${FEWEST_ROWS + 2} tokens or more.`;
    const said = kinds.map(({ name }, kind) => {
      const best = heads.reduce((one, other) => (other.habits[kind].share > one.habits[kind].share ? other : one));
      return `on ${name}: ${best.name} (${percent(best.habits[kind].share)})`;
    });
    const marked = heads.some(({ habits }) => habits.some(({ share }) => share > MARKED));
    const key = marked ? " A mark at a head: more than half." : "";
    return `The heads that look most, on average over the text, ${said.join("; ")}.${key}`;
  }

  // The shares of its weight, averaged over the tokens that have a choice; none where these are too few to mean anything.
  habits(layer, head) {
    const rows = this.rows(layer).slice(2);
    const mean = (weight) => rows.reduce((sum, heads) => sum + weight(heads[head]), 0) / rows.length;
    if (rows.length < FEWEST_ROWS) return [];
    return [
      { name: "the previous token", mark: "previous", share: mean((row) => row[row.length - 2]) },
      { name: "the token itself", mark: "itself", share: mean((row) => row[row.length - 1]) },
      { name: "the beginning", mark: "beginning", share: mean((row) => row[0]) },
    ];
  }

  // A pixel for each query (down) and key (across), and the cursor's row marked.
  draw(canvas, layer, head) {
    const rows = this.rows(layer), n = rows.length, [red, green, blue] = colour("--mark"), ink = colour("--ink");
    canvas.width = canvas.height = n;
    const image = new ImageData(n, n);
    rows.forEach((heads, query) => {
      for (let key = 0; key < n; key++) {
        const weight = key <= query ? heads[head][key] : 0, at = 4 * (query * n + key);
        const faint = query === this.window.column && weight < 0.15;
        image.data.set(faint ? [...ink, 45] : [red, green, blue, Math.round(255 * Math.sqrt(weight))], at);
      }
    });
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  large() {
    const { layer, head } = this.chosen, { column } = this.window;
    const weights = this.rows(layer)[column][head];
    this.draw($("large"), layer, head);
    const most = largest_few(weights, 5).map(({ token, value }) => `${quoted(this.pieces[token])} ${percent(value)}`);
    const habits = this.habits(layer, head).map(({ name, share }) => `${percent(share)} on ${name}`);
    const here = `From ${quoted(this.pieces[column])}, layer ${layer + 1}, head ${head + 1} looks at ${most.join(", ")}.`;
    $("large").setAttribute("aria-label", here);
    $("large-about").textContent = habits.length ? `${here} On average over the text: ${habits.join(", ")}.` : here;
    const spans = this.pieces.map((piece, place) =>
      shade(element("span", { class: place === column && "looking" }, piece), Math.sqrt(weights[place] ?? 0)),
    );
    $("looked-at").replaceChildren(...spans);
  }
}

// Red, green and blue of a colour of the style.
function colour(name) {
  const hex = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const digits = hex.length === 4 ? [...hex.slice(1)].map((digit) => digit + digit) : hex.slice(1).match(/../g);
  return digits.map((pair) => parseInt(pair, 16));
}
