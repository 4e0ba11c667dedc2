// The page's elements. Text goes in as text: nothing that a model, a story or a prompt says is read as HTML.

const $ = (id) => document.getElementById(id);

// A new element with attributes and children, which are elements or strings. A function is a listener.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value != null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// How much of its colour an element shows, 0 to 1. (A style attribute would be against the page's policy.)
function shade(target, share) {
  target.style.setProperty("--share", Math.min(1, share).toFixed(3));
  return target;
}

// A token in a table or a button: quoted, its white space visible.
function quoted(text) {
  return text === "" ? "⟨end⟩" : `“${text.replaceAll("\n", "↵").replaceAll("\t", "⇥")}”`;
}

function shortened(text) {
  const letters = [...text];
  return letters.length > 40 ? `${letters.slice(0, 39).join("")}…` : text;
}

function percent(share) {
  return share >= 0.9995 ? "100%" : `${(100 * share).toFixed(share >= 0.0995 ? 1 : 2)}%`;
}

function count(number) {
  return number.toLocaleString("en");
}

function many(number, noun) {
  return `${count(number)} ${noun}${number === 1 ? "" : "s"}`;
}

function decimals(number, digits) {
  return number.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

// A table of bars, each with its number. rows: [{ text, shares: [{ kind, share }], chosen, choose }].
function bars(caption, rows) {
  const body = rows.map(({ text, shares, chosen, choose }) => {
    const said = shares.map(({ kind, share }) => `${kind} ${percent(share)}`).join(", ");
    const name = choose ? element("button", { click: choose, "aria-label": `${text}: ${said}` }, text) : text;
    const drawn = shares.map(({ kind, share }) => {
      const bar = element("div", { class: `bar ${kind}`, title: `${kind} ${percent(share)}` });
      bar.style.width = share > 0 ? `max(1px, ${100 * share}%)` : "0";
      return element("div", { class: "share" }, element("div", { class: "track" }, bar), element("span", { class: "number" }, percent(share)));
    });
    return element(
      "tr",
      { class: chosen && "chosen" },
      element("th", { scope: "row", title: text }, name),
      element("td", { "aria-hidden": "true" }, ...drawn),
    );
  });
  return element("table", { class: "bars", "aria-label": caption }, element("tbody", {}, ...body));
}
